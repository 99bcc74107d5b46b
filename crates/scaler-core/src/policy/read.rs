//! Reading one `"ServerGroup"` row into a [`Policy`].

use jiff::SignedDuration;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::{AtDeadline, Dispatcher, Drain, Mode, Policy, PolicyError, Service, Violation};
use crate::candidate::Candidate;
use crate::name::{is_host_name, is_label_value};
use crate::schedule::Window;

const SERVERS_MAX: u64 = 10_000;
const SECONDS_MAX: u64 = 30 * 24 * 3600;
const CANDIDATES_MAX: usize = 64;
const WINDOWS_MAX: usize = 64;

/// Looks a field up in the row first, then in `scalingConfig`, and collects what is wrong.
struct Fields<'a> {
    row: &'a Map<String, Value>,
    config: &'a Map<String, Value>,
    violations: Vec<Violation>,
}

impl<'a> Fields<'a> {
    fn violation(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.violations.push(Violation { field: field.into(), problem: problem.into() });
    }

    /// The value and the name to report it under.
    fn value(&self, name: &str) -> Option<(&'a Value, String)> {
        let present = |map: &'a Map<String, Value>| map.get(name).filter(|value| !value.is_null());
        present(self.row)
            .map(|value| (value, name.to_owned()))
            .or_else(|| present(self.config).map(|value| (value, format!("scalingConfig.{name}"))))
    }

    fn parsed<T>(&mut self, name: &str, allowed: &str, parse: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let (value, field) = self.value(name)?;
        let parsed = parse(value);
        if parsed.is_none() {
            self.violation(field, format!("{} is not {allowed}", shown(value)));
        }
        parsed
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        self.parsed(name, "true or false", Value::as_bool).unwrap_or(default)
    }

    fn whole(&mut self, name: &str, low: u64, high: u64) -> Option<u64> {
        self.parsed(name, &format!("a whole number from {low} to {high}"), |value| {
            whole(value).filter(|number| (low..=high).contains(number))
        })
    }

    fn small(&mut self, name: &str, low: u64, high: u64, default: u32) -> u32 {
        self.whole(name, low, high).and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
    }

    fn seconds(&mut self, name: &str) -> Option<SignedDuration> {
        let number = self.whole(name, 0, SECONDS_MAX)?;
        i64::try_from(number).ok().map(SignedDuration::from_secs)
    }

    fn ratio(&mut self, name: &str) -> Option<f64> {
        self.parsed(name, "a number from 0 to 1", |value| {
            value.as_f64().filter(|ratio| ratio.is_finite() && (0.0..=1.0).contains(ratio))
        })
    }

    fn text(&mut self, name: &str, allowed: &str, check: impl Fn(&str) -> bool) -> Option<String> {
        self.parsed(name, allowed, |value| value.as_str().filter(|text| check(text)).map(str::to_owned))
    }
}

/// A value as it is quoted in a violation: short, on one line.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((cut, _)) = text.char_indices().nth(60) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: whole, not negative, small
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..1e15).contains(&number)).then_some(number as u64)
    })
}

pub(super) fn policy(row: &Value) -> Result<Policy, PolicyError> {
    let empty = Map::new();
    let columns = row.as_object().unwrap_or(&empty);
    let (config, config_violation) = match columns.get("scalingConfig") {
        None | Some(Value::Null) => (&empty, None),
        Some(Value::Object(map)) => (map, None),
        Some(other) => (&empty, Some(format!("{} is not a JSON object", shown(other)))),
    };
    let mut fields = Fields { row: columns, config, violations: Vec::new() };
    if let Some(problem) = config_violation {
        fields.violation("scalingConfig", problem);
    }
    let name = text_column(columns, "name");
    let id = text_column(columns, "id");
    let group = name.clone().or_else(|| id.clone()).unwrap_or_else(|| "?".to_owned());
    let policy = assemble(&mut fields, id, name);
    match policy {
        Some(policy) if fields.violations.is_empty() => Ok(policy),
        _ => Err(PolicyError { group, violations: fields.violations }),
    }
}

fn text_column(columns: &Map<String, Value>, name: &str) -> Option<String> {
    columns.get(name).and_then(Value::as_str).map(str::to_owned)
}

fn assemble(fields: &mut Fields<'_>, id: Option<String>, name: Option<String>) -> Option<Policy> {
    match &name {
        None => fields.violation("name", "is missing"),
        Some(name) if !is_label_value(name) => fields.violation(
            "name",
            format!(
                "{} cannot be a label: use letters, digits, `.`, `_`, `-`, at most 63, alphanumeric at both ends",
                shown(&Value::from(name.as_str()))
            ),
        ),
        Some(_) => {}
    }
    if id.is_none() {
        fields.violation("id", "is missing");
    }
    let service = fields
        .parsed("service", "`voice` or `api`", |value| value.as_str().and_then(Service::parse))
        .unwrap_or(Service::Voice);
    let enabled = fields.flag("enabled", true);
    let scaling_enabled = fields.flag("scalingEnabled", false);
    let min = fields.small("minInstances", 0, SERVERS_MAX, 1);
    let max = fields.small("maxInstances", 1, SERVERS_MAX, 10);
    if min > max {
        fields.violation("minInstances", format!("{min} is above maxInstances {max}"));
    }
    let (scale_up_above, scale_down_below) = thresholds(fields);
    let cooldown = fields.seconds("cooldownSeconds").unwrap_or(SignedDuration::from_secs(300));
    let provider = fields.text(
        "scalingProvider",
        "a provider's name (lower-case letters, digits and `-`, such as hetzner, aws, local, custom)",
        is_host_name,
    );
    if scaling_enabled && provider.is_none() && fields.value("scalingProvider").is_none() {
        fields.violation("scalingProvider", "is missing while scalingEnabled is true");
    }
    let calls_max = match service {
        Service::Voice => fields.whole("maxConcurrentCalls", 1, 1_000_000),
        Service::Api => None, // connections are not calls
    };
    Some(Policy {
        id: id.unwrap_or_default(),
        name: name.unwrap_or_default(),
        service,
        enabled,
        scaling_enabled,
        min,
        max,
        scale_up_above,
        scale_down_below,
        cooldown_up: fields.seconds("scaleUpCooldownSeconds").unwrap_or(cooldown),
        cooldown_down: fields.seconds("scaleDownCooldownSeconds").unwrap_or(cooldown),
        mode: mode(fields, scale_up_above),
        periods_up: fields.small("scaleUpPeriods", 1, 1000, 1),
        periods_down: fields.small("scaleDownPeriods", 1, 1000, 1),
        stabilise_up: fields.seconds("scaleUpStabilisationSeconds").unwrap_or(SignedDuration::ZERO),
        stabilise_down: fields.seconds("scaleDownStabilisationSeconds").unwrap_or(SignedDuration::ZERO),
        panic_at: panic_at(fields, scale_up_above),
        max_surge: fields.small("maxSurge", 1, 100, 2),
        max_drain: fields.small("maxDrain", 1, 100, 1),
        min_age: fields.seconds("minAgeSeconds").unwrap_or(SignedDuration::ZERO),
        calls_max: calls_max.and_then(|cap| u32::try_from(cap).ok()),
        creates_per_hour: fields.small("maxCreatesPerHour", 1, 1000, 60),
        drain: drain(fields),
        keep_failed: keep_failed(fields),
        heartbeat_deadline: fields.seconds("heartbeatTimeoutSeconds"),
        windows: windows(fields, min, max),
        provider,
        candidates: candidates(fields),
        secrets_name: fields.text(
            "secretsName",
            "the name of a secret, at most 512 visible ASCII characters",
            |text| (1..=512).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()),
        ),
        dispatcher: dispatcher(fields),
        routing_settle: fields.seconds("routingSettleSeconds"),
        priority: fields.small("priority", 0, 1000, 0),
        provider_config: fields.config.clone(),
    })
}

fn thresholds(fields: &mut Fields<'_>) -> (f64, f64) {
    let up = fields.ratio("scaleUpThreshold").unwrap_or(0.7);
    let down = fields.ratio("scaleDownThreshold").unwrap_or(0.3);
    if down >= up {
        fields.violation("scaleDownThreshold", format!("{down} is not below scaleUpThreshold {up}"));
    }
    (up, down)
}

fn panic_at(fields: &mut Fields<'_>, scale_up_above: f64) -> Option<f64> {
    let at = fields.parsed("panicThreshold", "a number above 0 and at most 10", |value| {
        value.as_f64().filter(|at| at.is_finite() && *at > 0.0 && *at <= 10.0)
    })?;
    if at <= scale_up_above {
        fields.violation(
            "scalingConfig.panicThreshold",
            format!("{at} is not above scaleUpThreshold {scale_up_above}"),
        );
    }
    Some(at)
}

fn mode(fields: &mut Fields<'_>, scale_up_above: f64) -> Mode {
    let target = fields.parsed("mode", "`step` or `target`", |value| match value.as_str()? {
        "step" => Some(false),
        "target" => Some(true),
        _ => None,
    });
    if target == Some(true) {
        let utilisation = fields.ratio("targetUtilisation").filter(|target| *target > 0.0);
        match utilisation {
            None => {
                fields.violation("scalingConfig.targetUtilisation", "is needed in mode `target`, above 0");
            }
            Some(target) if target >= scale_up_above => fields.violation(
                "scalingConfig.targetUtilisation",
                format!("{target} is not below scaleUpThreshold {scale_up_above}"),
            ),
            Some(_) => {}
        }
        let tolerance = fields.ratio("tolerance").unwrap_or(0.1);
        return Mode::Target { utilisation: utilisation.unwrap_or(0.5), tolerance };
    }
    Mode::Step { up: fields.small("stepUp", 1, 100, 1), down: fields.small("stepDown", 1, 100, 1) }
}

fn drain(fields: &mut Fields<'_>) -> Drain {
    Drain {
        timeout: fields.seconds("drainTimeoutSeconds"),
        at_deadline: fields
            .parsed("drainDeadline", "`end`, `extend` or `leave`", |value| match value.as_str()? {
                "end" => Some(AtDeadline::End),
                "extend" => Some(AtDeadline::Extend),
                "leave" => Some(AtDeadline::Leave),
                _ => None,
            })
            .unwrap_or(AtDeadline::End),
    }
}

fn keep_failed(fields: &mut Fields<'_>) -> Option<SignedDuration> {
    fields
        .flag("keepFailed", false)
        .then(|| fields.seconds("keepFailedSeconds").unwrap_or(SignedDuration::from_mins(30)))
}

/// `candidates`, else the one pair that `machineType`/`serverType`/`type` and `location`/`region` name.
fn candidates(fields: &mut Fields<'_>) -> Vec<Candidate> {
    if let Some((value, field)) = fields.value("candidates") {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        if list.is_empty() || list.len() > CANDIDATES_MAX {
            fields.violation(field, format!("is not a list of 1 to {CANDIDATES_MAX} objects"));
            return vec![Candidate(Map::new())];
        }
        return list
            .iter()
            .enumerate()
            .filter_map(|(index, value)| candidate(fields, &format!("{field}[{index}]"), value))
            .collect();
    }
    let mut only = Map::new();
    for (name, sources) in
        [("type", &["machineType", "serverType", "type"][..]), ("location", &["location", "region"])]
    {
        if let Some(text) = sources.iter().find_map(|source| {
            fields.text(source, "a machine type or location (letters, digits, `.`, `_`, `-`)", is_label_value)
        }) {
            only.insert(name.to_owned(), Value::from(text));
        }
    }
    vec![Candidate(only)]
}

fn candidate(fields: &mut Fields<'_>, field: &str, value: &Value) -> Option<Candidate> {
    let Some(map) = value.as_object() else {
        fields.violation(
            field,
            format!("{} is not an object such as {{\"type\":…,\"location\":…}}", shown(value)),
        );
        return None;
    };
    for name in ["type", "location"] {
        match map.get(name) {
            None => {}
            Some(Value::String(text)) if is_label_value(text) => {}
            Some(other) => fields.violation(
                format!("{field}.{name}"),
                format!("{} is not made of letters, digits, `.`, `_`, `-`", shown(other)),
            ),
        }
    }
    Some(Candidate(map.clone()))
}

fn dispatcher(fields: &mut Fields<'_>) -> Dispatcher {
    let mut dispatcher = Dispatcher { setid: 1, port: 5060, transport: "udp".to_owned() };
    let Some(value) = fields.config.get("dispatcher").filter(|value| !value.is_null()) else {
        return dispatcher;
    };
    let Some(map) = value.as_object() else {
        fields.violation("scalingConfig.dispatcher", format!("{} is not an object", shown(value)));
        return dispatcher;
    };
    let mut number = |name: &str, low: u64, high: u64| match map.get(name) {
        None | Some(Value::Null) => None,
        Some(value) => {
            let parsed = whole(value).filter(|number| (low..=high).contains(number));
            if parsed.is_none() {
                fields.violation(
                    format!("scalingConfig.dispatcher.{name}"),
                    format!("{} is not a whole number from {low} to {high}", shown(value)),
                );
            }
            parsed
        }
    };
    if let Some(setid) = number("setid", 1, 2_147_483_647).and_then(|setid| u32::try_from(setid).ok()) {
        dispatcher.setid = setid;
    }
    if let Some(port) = number("port", 1, 65_535).and_then(|port| u16::try_from(port).ok()) {
        dispatcher.port = port;
    }
    match map.get("transport") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if ["udp", "tcp", "tls"].contains(&text.as_str()) => {
            dispatcher.transport.clone_from(text);
        }
        Some(other) => fields.violation(
            "scalingConfig.dispatcher.transport",
            format!("{} is not `udp`, `tcp` or `tls`", shown(other)),
        ),
    }
    dispatcher
}

fn windows(fields: &mut Fields<'_>, min: u32, max: u32) -> Vec<Window> {
    let Some(value) = fields.config.get("schedules").filter(|value| !value.is_null()) else {
        return Vec::new();
    };
    match value.as_array() {
        Some(list) if list.len() <= WINDOWS_MAX => list
            .iter()
            .enumerate()
            .filter_map(|(index, value)| window(fields, index, value, min, max))
            .collect(),
        _ => {
            fields.violation(
                "scalingConfig.schedules",
                format!("is not a list of at most {WINDOWS_MAX} windows"),
            );
            Vec::new()
        }
    }
}

fn window(fields: &mut Fields<'_>, index: usize, value: &Value, min: u32, max: u32) -> Option<Window> {
    let field = |name: &str| format!("scalingConfig.schedules[{index}].{name}");
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let bound = |name: &str, low: u64| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => whole(value)
            .filter(|number| (low..=SERVERS_MAX).contains(number))
            .and_then(|number| u32::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| format!("{} is not a whole number from {low} to {SERVERS_MAX}", shown(value))),
    };
    let mut problems: Vec<(&str, String)> = Vec::new();
    let mut keep = |name: &'static str, result: Result<Option<u32>, String>| match result {
        Ok(number) => number,
        Err(problem) => {
            problems.push((name, problem));
            None
        }
    };
    let low = keep("minInstances", bound("minInstances", 0));
    let high = keep("maxInstances", bound("maxInstances", 1));
    if low.unwrap_or(min) > high.unwrap_or(max) {
        problems.push((
            "minInstances",
            format!("{} is above the window's maximum {}", low.unwrap_or(min), high.unwrap_or(max)),
        ));
    }
    let zone = text("timezone").and_then(|name| TimeZone::get(name).ok());
    if zone.is_none() {
        problems.push(("timezone", "is not an IANA zone such as Europe/Berlin".to_owned()));
    }
    let time = |name: &str| text(name).and_then(|text| text.parse::<Time>().ok());
    let (from, to) = (time("from"), time("to"));
    for (name, time) in [("from", from), ("to", to)] {
        if time.is_none() {
            problems.push((name, "is not a time such as 07:30".to_owned()));
        }
    }
    let days = days(value.get("days"));
    if days.is_none() {
        problems.push(("days", "is not a list of mon, tue, wed, thu, fri, sat, sun".to_owned()));
    }
    let failed = !problems.is_empty();
    for (name, problem) in problems {
        fields.violation(field(name), problem);
    }
    if failed {
        return None;
    }
    Some(Window {
        name: text("name").map_or_else(|| format!("schedules[{index}]"), str::to_owned),
        zone: zone?,
        days: days?,
        from: from?,
        to: to?,
        min: low,
        max: high,
        inhibit_scale_down: value.get("inhibitScaleDown").and_then(Value::as_bool).unwrap_or(false),
        priority: value
            .get("priority")
            .and_then(Value::as_i64)
            .and_then(|p| i32::try_from(p).ok())
            .unwrap_or(0),
    })
}

/// Absent means every day.
fn days(value: Option<&Value>) -> Option<Vec<Weekday>> {
    const NAMES: [(&str, Weekday); 7] = [
        ("mon", Weekday::Monday),
        ("tue", Weekday::Tuesday),
        ("wed", Weekday::Wednesday),
        ("thu", Weekday::Thursday),
        ("fri", Weekday::Friday),
        ("sat", Weekday::Saturday),
        ("sun", Weekday::Sunday),
    ];
    match value {
        None | Some(Value::Null) => Some(NAMES.iter().map(|(_, day)| *day).collect()),
        Some(Value::Array(list)) if !list.is_empty() => list
            .iter()
            .map(|day| {
                let day = day.as_str()?.to_ascii_lowercase();
                NAMES.iter().find(|(name, _)| day.starts_with(name)).map(|(_, day)| *day)
            })
            .collect(),
        Some(_) => None,
    }
}
