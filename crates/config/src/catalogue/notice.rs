//! Notices: who is told what happens to the platform, and how often.

use std::time::Duration;

use crate::setting::{Binaries, settings};
use crate::value::kinds::{duration, list};

settings! {
    "Notices", "What the services report about themselves, by mail; see docs/notices.md.";

    /// Addresses of those who run the platform, separated by commas. Without it nobody is told anything.
    ALERT_RECIPIENTS: Vec<String> = list().only(Binaries::Tasker)
        .check("at most 50 addresses separated by commas, such as ops@example.com,oncall@example.com", are_addresses);
    /// After a mail about an event of a group, further notices of the same event and group wait this long and come in one mail. `0s` sends each by itself.
    ALERT_THROTTLE: Duration = duration().default("15m").between(0, 86_400_000).only(Binaries::Tasker);
}

fn are_addresses(raw: &str) -> bool {
    let mut addresses = raw.split(',').map(str::trim);
    addresses.clone().count() <= 50 && addresses.all(super::mail::is_address)
}
