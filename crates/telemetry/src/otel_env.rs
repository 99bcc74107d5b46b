//! Reads the standard `OTEL_` variables and says what is to be exported.
//!
//! The SDK falls back silently when a value is wrong, which shows at three in the morning as a dashboard without data.
//! Here every wrong value is found before anything starts, and each is named.

use crate::Violation;

/// How one signal leaves the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignalPlan {
    /// The OTLP transport.
    pub(crate) protocol: Protocol,
    /// True when the endpoint is reached by TLS.
    pub(crate) tls: bool,
}

/// An OTLP transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP with protobuf bodies.
    HttpProtobuf,
}

/// What is exported. `None`: that signal stays in the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) traces: Option<SignalPlan>,
    pub(crate) metrics: Option<SignalPlan>,
    pub(crate) logs: Option<SignalPlan>,
}

impl Plan {
    /// True when nothing leaves the process.
    pub(crate) const fn is_empty(&self) -> bool {
        self.traces.is_none() && self.metrics.is_none() && self.logs.is_none()
    }
}

/// The variables as this module sees them; an empty value counts as unset, as the OpenTelemetry specification wants.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Works out the plan, or every violation at once.
pub(crate) fn plan(lookup: Lookup<'_>) -> Result<Plan, Vec<Violation>> {
    let mut env = Env { lookup, violations: Vec::new() };
    if env.flag("OTEL_SDK_DISABLED").unwrap_or(false) && env.violations.is_empty() {
        return Ok(Plan::default());
    }
    let plan =
        Plan { traces: env.signal("TRACES"), metrics: env.signal("METRICS"), logs: env.signal("LOGS") };
    env.check_transport_details();
    env.check_sdk();
    if env.violations.is_empty() { Ok(plan) } else { Err(env.violations) }
}

struct Env<'a> {
    lookup: Lookup<'a>,
    violations: Vec<Violation>,
}

/// The prefix of the OTLP variables for one signal; an empty signal stands for all of them.
fn otlp(signal: &str, what: &str) -> String {
    if signal.is_empty() {
        format!("OTEL_EXPORTER_OTLP_{what}")
    } else {
        format!("OTEL_EXPORTER_OTLP_{signal}_{what}")
    }
}

const SCOPES: [&str; 4] = ["", "TRACES", "METRICS", "LOGS"];

impl Env<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn wrong(&mut self, name: &str, problem: impl Into<String>) {
        let known = self.violations.iter().any(|violation| violation.name == name);
        if !known {
            self.violations.push(Violation { name: name.to_owned(), problem: problem.into() });
        }
    }

    fn flag(&mut self, name: &str) -> Option<bool> {
        match self.get(name)?.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            other => {
                self.wrong(name, format!("`{other}` is neither true nor false"));
                None
            }
        }
    }

    fn one_of(&mut self, name: &str, allowed: &[&str]) -> Option<String> {
        let value = self.get(name)?.to_ascii_lowercase();
        if allowed.contains(&value.as_str()) {
            return Some(value);
        }
        self.wrong(name, format!("`{value}` is not supported; use one of {}", allowed.join(", ")));
        None
    }

    fn positive(&mut self, name: &str) -> Option<u64> {
        let value = self.get(name)?;
        match value.parse::<u64>() {
            Ok(number) if number > 0 => Some(number),
            _ => {
                self.wrong(name, format!("`{value}` is not a whole number above 0"));
                None
            }
        }
    }

    /// Whether and how one signal is exported: on request (`otlp`), or because an endpoint is set.
    fn signal(&mut self, signal: &str) -> Option<SignalPlan> {
        let exporter = self.one_of(&format!("OTEL_{signal}_EXPORTER"), &["otlp", "none"]);
        let protocol = self.protocol(signal);
        let endpoint = self.endpoint(signal, protocol);
        let wanted = match exporter.as_deref() {
            Some("none") => false,
            Some(_) => true,
            None => endpoint.is_some(),
        };
        wanted.then(|| {
            let endpoint = endpoint.unwrap_or_default();
            let protocol =
                protocol.unwrap_or(if endpoint.grpc_port { Protocol::Grpc } else { Protocol::HttpProtobuf });
            SignalPlan { protocol, tls: endpoint.tls }
        })
    }

    fn protocol(&mut self, signal: &str) -> Option<Protocol> {
        let allowed = ["grpc", "http/protobuf"];
        let general = self.one_of(&otlp("", "PROTOCOL"), &allowed);
        let own = self.one_of(&otlp(signal, "PROTOCOL"), &allowed);
        own.or(general).map(|name| if name == "grpc" { Protocol::Grpc } else { Protocol::HttpProtobuf })
    }

    fn endpoint(&mut self, signal: &str, protocol: Option<Protocol>) -> Option<Endpoint> {
        let general = self.one_endpoint(&otlp("", "ENDPOINT"), signal, protocol);
        let own = self.one_endpoint(&otlp(signal, "ENDPOINT"), signal, protocol);
        own.or(general)
    }

    /// Checks one endpoint variable. The value itself is never shown: it may carry credentials.
    fn one_endpoint(&mut self, name: &str, signal: &str, protocol: Option<Protocol>) -> Option<Endpoint> {
        let value = self.get(name)?;
        let bare = !value.contains("://");
        if bare && protocol != Some(Protocol::Grpc) {
            self.wrong(name, "has no scheme; write http://HOST:PORT or https://HOST:PORT");
            return None;
        }
        let text = if bare { format!("https://{value}") } else { value };
        let url = match url::Url::parse(&text) {
            Ok(url) => url,
            Err(error) => {
                self.wrong(
                    name,
                    format!("is not a URL ({error}); write http://HOST:PORT or https://HOST:PORT"),
                );
                return None;
            }
        };
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            self.wrong(name, "needs the scheme http or https and a host");
            return None;
        }
        let insecure = bare && self.insecure(signal);
        Some(Endpoint { tls: url.scheme() == "https" && !insecure, grpc_port: url.port() == Some(4317) })
    }

    fn insecure(&mut self, signal: &str) -> bool {
        let general = self.flag(&otlp("", "INSECURE"));
        self.flag(&otlp(signal, "INSECURE")).or(general).unwrap_or(false)
    }

    fn check_transport_details(&mut self) {
        for scope in SCOPES {
            self.positive(&otlp(scope, "TIMEOUT"));
            self.one_of(&otlp(scope, "COMPRESSION"), &["gzip", "none"]);
            self.flag(&otlp(scope, "INSECURE"));
            let name = otlp(scope, "HEADERS");
            if self.get(&name).is_some_and(|value| !are_pairs(&value, is_header_name)) {
                self.wrong(
                    &name,
                    "must be NAME=VALUE pairs separated by commas, with percent-encoded values",
                );
            }
            for what in ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"] {
                let name = otlp(scope, what);
                if self.get(&name).is_some() {
                    let remedy = "is not supported; put the collector's authority into SSL_CERT_FILE";
                    self.wrong(&name, remedy);
                }
            }
        }
        self.one_of(&otlp("METRICS", "TEMPORALITY_PREFERENCE"), &["cumulative", "delta", "lowmemory"]);
    }

    fn check_sdk(&mut self) {
        self.check_sampler();
        let numbers = [
            "OTEL_METRIC_EXPORT_INTERVAL",
            "OTEL_METRIC_EXPORT_TIMEOUT",
            "OTEL_BSP_SCHEDULE_DELAY",
            "OTEL_BSP_EXPORT_TIMEOUT",
            "OTEL_BSP_MAX_QUEUE_SIZE",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            "OTEL_BLRP_SCHEDULE_DELAY",
            "OTEL_BLRP_EXPORT_TIMEOUT",
            "OTEL_BLRP_MAX_QUEUE_SIZE",
            "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
            "OTEL_SPAN_LINK_COUNT_LIMIT",
        ];
        for name in numbers {
            self.positive(name);
        }
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        if self.get(name).is_some_and(|value| !are_pairs(&value, |key| !key.is_empty())) {
            self.wrong(name, "must be KEY=VALUE pairs separated by commas");
        }
        for part in self.get("OTEL_PROPAGATORS").unwrap_or_default().split(',').map(str::trim) {
            if !matches!(part, "" | "tracecontext" | "baggage" | "none") {
                self.wrong("OTEL_PROPAGATORS", format!("`{part}` is not supported; use tracecontext"));
            }
        }
    }

    fn check_sampler(&mut self) {
        let samplers = [
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ];
        let Some(sampler) = self.one_of("OTEL_TRACES_SAMPLER", &samplers) else { return };
        if !sampler.ends_with("traceidratio") {
            return;
        }
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let ratio = self.get(name).and_then(|value| value.parse::<f64>().ok());
        if !ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)) {
            self.wrong(name, format!("must be a number from 0 to 1 for the sampler {sampler}"));
        }
    }
}

/// What the plan needs to know of an endpoint; the default is the SDK's own, on this host and without TLS.
#[derive(Debug, Clone, Copy, Default)]
struct Endpoint {
    tls: bool,
    /// 4317 is the registered port of OTLP over gRPC: with no protocol named, HTTP there could only fail.
    grpc_port: bool,
}

/// True when `list` is `KEY=VALUE` pairs separated by commas and every key passes `key_ok`.
fn are_pairs(list: &str, key_ok: impl Fn(&str) -> bool) -> bool {
    list.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .all(|entry| entry.split_once('=').is_some_and(|(key, _)| key_ok(key.trim())))
}

fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(variables: &[(&str, &str)]) -> Result<Plan, Vec<String>> {
        plan(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
            .map_err(|violations| violations.into_iter().map(|violation| violation.name).collect())
    }

    const HTTP: SignalPlan = SignalPlan { protocol: Protocol::HttpProtobuf, tls: false };
    const GRPC: SignalPlan = SignalPlan { protocol: Protocol::Grpc, tls: false };

    #[test]
    fn nothing_is_exported_unless_asked() {
        for variables in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_SERVICE_NAME", "x")],
            &[("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")],
        ] {
            assert_eq!(planned(variables), Ok(Plan::default()), "{variables:?}");
        }
    }

    #[test]
    fn an_endpoint_or_an_exporter_name_switches_a_signal_on() {
        let all = |plan| Plan { traces: Some(plan), metrics: Some(plan), logs: Some(plan) };
        assert_eq!(planned(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")]), Ok(all(HTTP)));
        assert_eq!(planned(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")]), Ok(all(GRPC)));
        assert_eq!(
            planned(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]),
            Ok(all(SignalPlan { tls: true, ..GRPC }))
        );
        assert_eq!(
            planned(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c:9/v1/metrics")]),
            Ok(Plan { metrics: Some(HTTP), ..Plan::default() })
        );
        assert_eq!(
            planned(&[("OTEL_LOGS_EXPORTER", "otlp")]),
            Ok(Plan { logs: Some(HTTP), ..Plan::default() })
        );
        assert_eq!(
            planned(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:9"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
                ("OTEL_METRICS_EXPORTER", "none"),
                ("OTEL_LOGS_EXPORTER", "none"),
            ]),
            Ok(Plan { traces: Some(GRPC), ..Plan::default() })
        );
    }

    #[test]
    fn each_wrong_value_is_named() {
        for (name, value) in [
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_METRICS_EXPORTER", "prometheus"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "GRPCS"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "bad name=1"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "1"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "-5"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "sometimes"),
        ] {
            assert_eq!(planned(&[(name, value)]), Err(vec![name.to_owned()]), "{name}={value}");
        }
    }

    #[test]
    fn a_ratio_sampler_needs_its_ratio() {
        let sampler = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        let arg = "OTEL_TRACES_SAMPLER_ARG";
        assert_eq!(planned(&[sampler]), Err(vec![arg.to_owned()]));
        assert_eq!(planned(&[sampler, (arg, "1.5")]), Err(vec![arg.to_owned()]));
        assert_eq!(planned(&[sampler, (arg, "0.25")]), Ok(Plan::default()));
    }

    #[test]
    fn all_violations_come_at_once_and_show_no_secret() {
        let variables = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_HEADERS" => Some("s3cret".to_owned()),
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("user:s3cret@host".to_owned()),
            "OTEL_TRACES_EXPORTER" => Some("nope".to_owned()),
            _ => None,
        };
        let violations = plan(&variables).expect_err("three wrong values");
        assert_eq!(violations.len(), 3, "{violations:?}");
        assert!(!format!("{violations:?}").contains("s3cret"));
    }
}
