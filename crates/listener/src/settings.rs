use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use voiceai_config::catalogue::http;
use voiceai_config::{Address, Reader, Setting};
use voiceai_runtime::Secret;

/// What a client may cost. The times that operators set come from the settings; the rest is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `MAIL_INTERNAL_HTTP_READ_HEADER_TIMEOUT`. For the head of a request. Default 2 s.
    pub read_header: Duration,
    /// `MAIL_INTERNAL_HTTP_READ_TIMEOUT`. For a whole request, from the end of its head. Default 10 s.
    pub read: Duration,
    /// `MAIL_INTERNAL_HTTP_IDLE_TIMEOUT`. For a connection between two requests. Default 1 m.
    pub idle: Duration,
    /// For a route's answer, the reading of the body included; then 503. 15 s, or `read` and 5 s where that is more.
    pub handle: Duration,
    /// For a client to take the response. 30 s.
    pub send: Duration,
    /// Connections at a time; more wait. 256.
    pub connections: usize,
    /// Bytes of request line and header fields; then 431. 16 KiB.
    pub head_bytes: usize,
    /// Header fields of a request; then 431. 100.
    pub head_fields: usize,
    /// Bytes of a body; then 413. 1 MiB. A route may have a limit of its own through [`axum::extract::DefaultBodyLimit`].
    pub body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_header: Duration::from_secs(2),
            read: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            handle: Duration::from_secs(15),
            send: Duration::from_secs(30),
            connections: 256,
            head_bytes: 16 * 1024,
            head_fields: 100,
            body_bytes: 1024 * 1024,
        }
    }
}

/// The settings of both listeners.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// `MAIL_INTERNAL_HTTP_ADDR`. Absent: no internal listener.
    pub internal: Option<SocketAddr>,
    /// `MAIL_PUBLIC_HTTP_ADDR`. Absent: no public listener.
    pub public: Option<SocketAddr>,
    /// `INTERNAL_HTTP_TOKEN`. Never absent where `internal` is set.
    pub token: Option<Secret>,
    /// `METRICS_HTTP`. Whether `/metrics` is served.
    pub metrics: bool,
    /// What a client may cost.
    pub limits: Limits,
}

impl ListenerSettings {
    /// Reads them, and checks the rules between them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let internal = read_address(reader, &http::MAIL_INTERNAL_HTTP_ADDR);
        let public = read_address(reader, &http::MAIL_PUBLIC_HTTP_ADDR);
        let token = reader.optional(&http::INTERNAL_HTTP_TOKEN);
        let metrics = reader.get(&http::METRICS_HTTP);
        if internal.is_some() && !reader.is_given(&http::INTERNAL_HTTP_TOKEN) {
            reader.violation(
                &http::INTERNAL_HTTP_TOKEN,
                "a bearer token of at least 32 bytes, because MAIL_INTERNAL_HTTP_ADDR is set and every route of it reads or changes data",
                "Set INTERNAL_HTTP_TOKEN to the output of `openssl rand -hex 32`, or unset MAIL_INTERNAL_HTTP_ADDR.",
            );
        }
        if internal.is_some() && internal == public {
            reader.violation(
                &http::MAIL_PUBLIC_HTTP_ADDR,
                "another address than MAIL_INTERNAL_HTTP_ADDR: the internal routes are not for the public",
                "Give MAIL_PUBLIC_HTTP_ADDR a port of its own.",
            );
        }
        if metrics && internal.is_none() {
            reader.warning(
                &http::METRICS_HTTP,
                "METRICS_HTTP is true and MAIL_INTERNAL_HTTP_ADDR is not set, so no metrics are served",
            );
        }
        let read = reader.get(&http::MAIL_INTERNAL_HTTP_READ_TIMEOUT);
        let usual = Limits::default();
        let limits = Limits {
            read_header: reader.get(&http::MAIL_INTERNAL_HTTP_READ_HEADER_TIMEOUT),
            read,
            idle: reader.get(&http::MAIL_INTERNAL_HTTP_IDLE_TIMEOUT),
            handle: usual.handle.max(read + Duration::from_secs(5)),
            ..usual
        };
        Self { internal, public, token, metrics, limits }
    }
}

/// An address to listen on. A name could stand for several, or for another one tomorrow, so only `localhost` is read.
fn read_address(reader: &Reader<'_>, setting: &'static Setting<Address>) -> Option<SocketAddr> {
    let address = reader.optional(setting)?;
    match ip(&address.host) {
        Some(ip) => Some(SocketAddr::new(ip, address.port)),
        None => {
            reader.violation(
                setting,
                "an IP address with a port, localhost:port, or :port for 127.0.0.1",
                format!(
                    "Set {} to an address of this host, 0.0.0.0 for all of them.",
                    setting.declaration.name
                ),
            );
            None
        }
    }
}

fn ip(host: &str) -> Option<IpAddr> {
    if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    host.parse().ok()
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Loaded, Report, Resolved};

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn read(pairs: &[(&str, &str)]) -> Result<Loaded<ListenerSettings>, Report> {
        Resolved::from_pairs(Binary::Tasker, pairs.iter().copied()).read(ListenerSettings::read)
    }

    #[test]
    fn nothing_is_opened_unless_asked() {
        let settings = read(&[]).unwrap().settings;
        assert_eq!((settings.internal, settings.public, settings.metrics), (None, None, false));
        let expected = (Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60));
        assert_eq!((settings.limits.read_header, settings.limits.read, settings.limits.idle), expected);
    }

    #[test]
    fn an_address_without_a_host_is_loopback_and_a_name_is_refused() {
        for (given, expected) in [
            (":8080", "127.0.0.1:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("0.0.0.0:8080", "0.0.0.0:8080"),
            ("[::1]:8080", "[::1]:8080"),
        ] {
            let settings =
                read(&[("TASKER_HTTP_ADDR", given), ("INTERNAL_HTTP_TOKEN", TOKEN)]).unwrap().settings;
            assert_eq!(settings.internal.unwrap().to_string(), expected);
        }
        let report =
            read(&[("MAIL_INTERNAL_HTTP_ADDR", "mail.example:8080"), ("INTERNAL_HTTP_TOKEN", TOKEN)]);
        let report = report.unwrap_err().to_string();
        assert!(report.contains("MAIL_INTERNAL_HTTP_ADDR") && report.contains("0.0.0.0"), "{report}");
    }

    #[test]
    fn an_internal_listener_needs_a_token_of_32_bytes() {
        let report = read(&[("MAIL_INTERNAL_HTTP_ADDR", ":8080")]).unwrap_err().to_string();
        assert!(
            report.contains("INTERNAL_HTTP_TOKEN") && report.contains("openssl rand -hex 32"),
            "{report}"
        );
        let short = &TOKEN[1..];
        let report = read(&[("MAIL_INTERNAL_HTTP_ADDR", ":8080"), ("INTERNAL_HTTP_TOKEN", short)]);
        let report = report.unwrap_err().to_string();
        assert!(report.contains("at least 32") && !report.contains(short), "{report}");
    }

    #[test]
    fn the_two_listeners_are_two() {
        let pairs = [
            ("MAIL_INTERNAL_HTTP_ADDR", ":8080"),
            ("MAIL_PUBLIC_HTTP_ADDR", "127.0.0.1:8080"),
            ("INTERNAL_HTTP_TOKEN", TOKEN),
        ];
        assert!(read(&pairs).unwrap_err().to_string().contains("a port of its own"));
    }

    #[test]
    fn metrics_without_a_listener_are_worth_a_warning() {
        let loaded = read(&[("METRICS_HTTP", "true")]).unwrap();
        assert!(
            loaded.warnings.iter().any(|warning| warning.name == "METRICS_HTTP"),
            "{:?}",
            loaded.warnings
        );
    }
}
