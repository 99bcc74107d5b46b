//! `doctor` on certificates: the authority's files, the revocation list that devices are checked against, and what ends soon.

use std::time::Duration;

use jiff::Timestamp;
use voiceai_cli::doctor::Finding;
use voiceai_cli::human_duration;
use voiceai_doctor::Stores;
use voiceai_platform::certificates::{self, Authority, CertificateSettings, Standing};

/// A list that is good for less was not made anew when it should have been: that is done every hour.
const SHORT: Duration = Duration::from_secs(30 * 60);

pub(super) async fn check(stores: Stores, settings: CertificateSettings) -> Finding {
    if let Err(finding) = authority(&settings) {
        return finding;
    }
    let pool = match stores.pool().await {
        Ok(pool) => pool,
        Err(finding) => return finding,
    };
    match certificates::standing(&pool, &settings).await {
        Ok(standing) => judge(&standing, &settings, Timestamp::now()),
        Err(error) => {
            Finding::failed(format!("how certificates stand cannot be read: {error}"), "Run `migrate` once.")
        }
    }
}

/// Whether the authority can sign; where none is set there is nothing to sign.
fn authority(settings: &CertificateSettings) -> Result<(), Finding> {
    let (certificate, key) = match (&settings.ca_certificate, &settings.ca_key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) => {
            return Err(Finding::skipped("DEVICE_CA_CERT_PATH and DEVICE_CA_KEY_PATH are not set"));
        }
        (one, _) => {
            let missing = if one.is_none() { "DEVICE_CA_CERT_PATH" } else { "DEVICE_CA_KEY_PATH" };
            return Err(Finding::failed(
                format!("{missing} is not set, so no revocation list is made"),
                format!("Set {missing}, or neither of the two."),
            ));
        }
    };
    match Authority::read(certificate, key) {
        Ok(_) => Ok(()),
        Err(error) => {
            let source =
                std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            Err(Finding::failed(
                format!("the devices' authority cannot sign: {error}{source}"),
                "Correct DEVICE_CA_CERT_PATH and DEVICE_CA_KEY_PATH; until then no revocation list is made.",
            ))
        }
    }
}

fn judge(standing: &Standing, settings: &CertificateSettings, now: Timestamp) -> Finding {
    let days = settings.warning_days;
    let ending = match standing.ending {
        None => {
            return Finding::skipped("the platform has no device_certificates");
        }
        Some(0) => format!("no device certificate ends within {days} days"),
        Some(count) => format!("{count} device certificates end within {days} days"),
    };
    let Some(list) = &standing.list else {
        return Finding::warning(
            format!("no revocation list was made yet; {ending}"),
            "Run `cron run certificates`.",
        );
    };
    let left = list.next_update.duration_since(now);
    let path = settings.crl_path.display();
    let Ok(left) = Duration::try_from(left) else {
        return Finding::failed(
            format!(
                "the revocation list is good no longer, since {:.0}: devices are refused",
                list.next_update
            ),
            "See `jobs list --kind certificates.upkeep --state dead`, then `cron run certificates`.",
        );
    };
    if left < SHORT {
        return Finding::warning(
            format!("the revocation list is good for {} only; {ending}", human_duration(left)),
            "See `jobs list --kind certificates.upkeep --state dead`, then `cron run certificates`.",
        );
    }
    // Another process may have written it elsewhere: only what lies here and is stale is worth a word.
    if settings.crl_path.exists() {
        match certificates::file_good_until(&settings.crl_path) {
            Ok(until) if until < now => {
                return Finding::warning(
                    format!("{path} was good until {until:.0}, but a newer list was put in place elsewhere"),
                    "Let every tasker and the broker share the folder of CRL_OUTPUT_PATH.",
                );
            }
            Err(why) => {
                return Finding::failed(
                    format!("{path} cannot be used: {why}"),
                    "Remove the file, then `cron run certificates`.",
                );
            }
            Ok(_) => {}
        }
    }
    let evidence = format!("the revocation list is good for {}; {ending}", human_duration(left));
    if standing.ending.is_some_and(|count| count > 0) {
        return Finding::warning(evidence, "Renew them; docs/duties.md says who was told.");
    }
    Finding::ok(evidence)
}

#[cfg(test)]
mod tests {
    use voiceai_platform::certificates::RevocationList;

    use super::*;

    #[test]
    fn a_list_that_ends_and_certificates_that_end_are_told_apart() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let settings = CertificateSettings {
            ca_certificate: None,
            ca_key: None,
            crl_path: "/nowhere/crl.pem".into(),
            crl_lifetime: Duration::from_secs(7_200),
            crl_reload: None,
            warning_days: 30,
            endpoints: Vec::new(),
        };
        let list = |next: &str| {
            Some(RevocationList {
                issuer: "CN=x".into(),
                placed_at: None,
                next_update: next.parse().unwrap(),
            })
        };
        for (list, ending, says) in [
            (list("2026-11-22T13:00:00Z"), Some(0), "Ok"),
            (list("2026-11-22T13:00:00Z"), Some(2), "2 device certificates end"),
            (list("2026-11-22T12:29:00Z"), Some(0), "29"),
            (list("2026-11-22T11:59:59Z"), Some(0), "good no longer"),
            (None, Some(0), "no revocation list was made yet"),
            (None, None, "no device_certificates"),
        ] {
            let finding = format!("{:?}", judge(&Standing { list, ending }, &settings, now));
            assert!(finding.contains(says), "{says}: {finding}");
        }
    }
}
