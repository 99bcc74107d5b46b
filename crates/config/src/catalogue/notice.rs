//! Notices: who is told what happens to the platform, and how often.

use std::time::Duration;

use voiceai_runtime::Secret;

use super::form::{HTTP_URL, is_http};
use crate::setting::{Binaries, settings};
use crate::value::kinds::{duration, list, secret, secret_url};

settings! {
    "Notices", "What the services report about themselves, by mail and webhook; see docs/notices.md.";

    /// Addresses of those who run the platform, separated by commas. Without it, and without `ALERT_WEBHOOK_URL`, nobody is told anything.
    ALERT_RECIPIENTS: Vec<String> = list().only(Binaries::Tasker)
        .check("at most 50 addresses separated by commas, such as ops@example.com,oncall@example.com", are_addresses);
    /// After a mail about an event of a group, further notices of the same event and group wait this long and come in one mail. `0s` sends each by itself.
    ALERT_THROTTLE: Duration = duration().default("15m").between(0, 86_400_000).only(Binaries::Tasker);
    /// Address that every notice is posted to as well, as JSON. It may be a private one.
    ALERT_WEBHOOK_URL: Secret = secret_url().only(Binaries::Tasker).check(HTTP_URL, is_http);
    /// Secret (`whsec_…`) that those posts are signed with by the Standard Webhooks scheme. Without it they are not signed.
    ALERT_WEBHOOK_SECRET: Secret = secret().only(Binaries::Tasker);
}

pub(super) fn are_addresses(raw: &str) -> bool {
    let mut addresses = raw.split(',').map(str::trim);
    addresses.clone().count() <= 50 && addresses.all(super::mail::is_address)
}
