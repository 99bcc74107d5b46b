//! Duties on the platform's own tables that need more than the tables: certificates, reports, rollouts.

use std::path::PathBuf;
use std::time::Duration;

use voiceai_runtime::Secret;

use super::form::{HTTP_URL, is_http, is_http_template};
use crate::setting::{Binaries, settings};
use crate::value::kinds::{duration, integer, list, path, secret, secret_url};

settings! {
    "Duties", "Certificates, reports and rollouts; see docs/duties.md.";

    /// Certificate (PEM) of the authority that signs device certificates. Without it no revocation list is made.
    DEVICE_CA_CERT_PATH: PathBuf = path().only(Binaries::Tasker);
    /// Its private key (PEM, RSA or ECDSA). Only the file's path is a setting; the key stays in memory for as long as a list is signed.
    DEVICE_CA_KEY_PATH: PathBuf = path().only(Binaries::Tasker);
    /// Where the revocation list (PEM) is written, by every process that runs the job: a folder that the broker reads too.
    CRL_OUTPUT_PATH: PathBuf = path().default("/certs/device-crl.pem").only(Binaries::Tasker);
    /// How long a revocation list is good for. It is made anew every hour.
    CRL_LIFETIME: Duration = duration().default("2h").between(3_600_000, 2_592_000_000).only(Binaries::Tasker);
    /// Address that is told of a new revocation list by an empty `PUT`, such as the broker's own for restarting a listener; `user:password@` in it is sent as basic authentication. A failure is only logged.
    CRL_RELOAD_URL: Secret = secret_url().only(Binaries::Tasker).check(HTTP_URL, is_http);
    /// Days before its end from which on a certificate is warned of.
    CERT_EXPIRY_WARNING_DAYS: u32 = integer().default("30").between(1, 825).only(Binaries::Tasker);
    /// TLS endpoints whose certificates are watched too, as `host:port` separated by commas, such as `api.example.com:443`.
    CERT_ENDPOINTS: Vec<String> = list().only(Binaries::Tasker)
        .check("at most 200 of host:port separated by commas, such as api.example.com:443,[2001:db8::1]:8443", are_endpoints);
    /// Days that the daily report looks back.
    SLA_REPORT_DAYS: u32 = integer().default("30").between(1, 366).only(Binaries::Tasker);
    /// Addresses that the daily report of every tenant is mailed to. Without it reports are only kept as rows.
    SLA_REPORT_RECIPIENTS: Vec<String> = list().only(Binaries::Tasker)
        .check("at most 50 addresses separated by commas, such as sla@example.com", super::notice::are_addresses);
    /// Address that a rollout's orders are posted to, one for each target, where the campaign names no `dispatch_url` of its own. `{tenant}`, `{device}` and `{campaign}` in it are filled in. Unlike a campaign's, it may be a private address.
    ROLLOUT_DISPATCH_URL: Secret = secret_url().only(Binaries::Tasker).check(HTTP_URL, is_http_template);
    /// Secret (`whsec_…`) that the posts to `ROLLOUT_DISPATCH_URL` are signed with.
    ROLLOUT_DISPATCH_SECRET: Secret = secret().only(Binaries::Tasker);
    /// How often a running rollout takes its next step.
    ROLLOUT_INTERVAL: Duration = duration().default("10s").between(1_000, 60_000).only(Binaries::Tasker);
    /// A target that has not reported the end of its update this long after its order is counted as failed.
    ROLLOUT_REPORT_TIMEOUT: Duration = duration().default("24h").between(1_000, 2_592_000_000).only(Binaries::Tasker);
}

/// Host and port of each: the host in brackets where it is an IPv6 address.
fn are_endpoints(raw: &str) -> bool {
    let mut endpoints = raw.split(',').map(str::trim);
    let is_endpoint = |endpoint: &str| {
        endpoint.rsplit_once(':').is_some_and(|(host, port)| {
            let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let known = match inner {
                Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
                None => {
                    !host.is_empty()
                        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
                }
            };
            known && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    };
    endpoints.clone().count() <= 200 && endpoints.all(is_endpoint)
}

#[cfg(test)]
mod tests {
    use super::are_endpoints;

    #[test]
    fn an_endpoint_is_a_host_with_a_port() {
        for good in ["api.example.com:443", "10.0.0.1:5061, [2001:db8::1]:8443"] {
            assert!(are_endpoints(good), "{good}");
        }
        for bad in [
            "api.example.com",
            "https://api.example.com:443",
            "2001:db8::1:443",
            "a:0",
            "a:70000",
            ":443",
            "[x]:1",
        ] {
            assert!(!are_endpoints(bad), "{bad}");
        }
    }
}
