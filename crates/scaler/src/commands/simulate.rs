//! `simulate`: a policy on a load, without any backend.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use voiceai_cli::{Column, Failure, Output, duration_arg};
use voiceai_scaler_core::Policy;
use voiceai_scaler_core::candidate::Candidate;
use voiceai_scaler_core::simulate::{Moment, Point, Run, SHAPES, Summary, World, shape, simulate};

/// Most bytes of a policy or a load.
const FILE_MAX: u64 = 64 * 1024 * 1024;
/// Most lines in the table of servers over time.
const LINES: usize = 24;

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// A policy: JSON as a row of "ServerGroup"; give several to compare them
    #[arg(long, value_name = "FILE", required = true)]
    policy: Vec<PathBuf>,
    /// The load: a CSV of `at,load`, or one of step, sine, spike, sawtooth, outage
    #[arg(long, value_name = "FILE|SHAPE")]
    load: String,
    /// Also draw load and capacity into this HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Between two evaluations
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration_arg)]
    interval: Duration,
    /// From the decision to a server in service
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = duration_arg)]
    boot: Duration,
    /// Mean length of a call
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = duration_arg)]
    call: Duration,
    /// Calls a server takes
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    capacity: u32,
    /// Price of one server for an hour; or of one machine type, as `cx32=0.012`: may be given for each, and a policy pays that
    /// of its first candidate
    #[arg(long, value_name = "[TYPE=]PRICE", value_parser = Price::parse)]
    price: Vec<Price>,
    /// Length of a shape in hours
    #[arg(long, value_name = "HOURS", default_value_t = 24.0)]
    hours: f64,
    /// Fewest calls of a shape
    #[arg(long, value_name = "CALLS", default_value_t = 50.0)]
    low: f64,
    /// Most calls of a shape
    #[arg(long, value_name = "CALLS", default_value_t = 500.0)]
    high: f64,
}

/// What a server costs an hour.
#[derive(Debug, Clone)]
struct Price {
    /// The machine type; `None`: every one without a price of its own.
    machine: Option<String>,
    per_hour: f64,
}

impl Price {
    fn parse(text: &str) -> Result<Self, String> {
        let (machine, price) = match text.split_once('=') {
            Some((machine, price)) if !machine.trim().is_empty() => (Some(machine.trim().to_owned()), price),
            Some(_) => return Err("expected TYPE=PRICE".to_owned()),
            None => (None, text),
        };
        let per_hour = price.trim().parse::<f64>().ok().filter(|price| price.is_finite() && *price >= 0.0);
        let per_hour = per_hour.ok_or("expected a price of 0 or more, such as 0.012 or cx32=0.012")?;
        Ok(Self { machine, per_hour })
    }

    /// What a policy's servers cost, by the first machine type that it asks for.
    fn of(prices: &[Self], policy: &Policy, file: &Path) -> Result<f64, Failure> {
        let machine = policy.candidates.first().map_or("", Candidate::machine);
        let named = prices.iter().rev().find(|price| price.machine.as_deref() == Some(machine));
        let any = prices.iter().rev().find(|price| price.machine.is_none());
        match named.or(any) {
            Some(price) => Ok(price.per_hour),
            None if prices.is_empty() => Ok(1.0),
            None => Err(refused("no_price", file, format!("no --price for its machine type `{machine}`"))),
        }
    }
}

/// One policy's run.
#[derive(Debug, Serialize)]
struct Rehearsal {
    policy: String,
    /// What one of its servers costs an hour.
    price_per_hour: f64,
    #[serde(flatten)]
    run: Run,
}

pub(super) fn run(arguments: &SimulateArgs, output: Output) -> Result<(), Failure> {
    let world = World {
        interval_s: arguments.interval.as_secs_f64().max(0.1),
        boot_s: arguments.boot.as_secs_f64(),
        call_s: arguments.call.as_secs_f64(),
        capacity: arguments.capacity,
        price_per_hour: 1.0,
    };
    let load = read_load(arguments)?;
    let mut rehearsals = Vec::new();
    for file in &arguments.policy {
        let policy = read_policy(file)?;
        let price_per_hour = Price::of(&arguments.price, &policy, file)?;
        let run = simulate(&policy, &load, &World { price_per_hour, ..world });
        rehearsals.push(Rehearsal { policy: file.display().to_string(), price_per_hour, run });
    }
    if let Some(file) = &arguments.html {
        std::fs::write(file, page(&rehearsals)).map_err(|error| {
            Failure::failed(
                "html_failed",
                format!("write {}: {error}", file.display()),
                "Give a file that can be written.",
            )
        })?;
    }
    let world = json!({
        "interval_s": world.interval_s, "boot_s": world.boot_s, "call_s": world.call_s, "capacity": world.capacity,
    });
    output.one(&json!({ "runs": &rehearsals, "world": world }), |_| text(&rehearsals, output))
}

fn refused(code: &'static str, file: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::refused(
        code,
        format!("{}: {why}", file.display()),
        "Correct the file; docs/scaling.md shows the form.",
    )
}

fn read_file(file: &Path) -> Result<String, Failure> {
    let size = std::fs::metadata(file).map(|meta| meta.len());
    let text = size.and_then(|size| {
        if size > FILE_MAX {
            Err(std::io::Error::other("larger than 64 MiB"))
        } else {
            std::fs::read_to_string(file)
        }
    });
    text.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found(
            "file_not_found",
            format!("{}: not found", file.display()),
            "Give a file that is there.",
        ),
        _ => refused("file_unreadable", file, error),
    })
}

/// A policy needs no id, name or provider to be rehearsed.
fn read_policy(file: &Path) -> Result<Policy, Failure> {
    let mut row: Value =
        serde_json::from_str(&read_file(file)?).map_err(|e| refused("policy_invalid", file, e))?;
    let Value::Object(columns) = &mut row else {
        return Err(refused("policy_invalid", file, "not a JSON object"));
    };
    for (name, value) in [
        ("id", json!("simulated")),
        ("name", json!("simulated")),
        ("scalingEnabled", json!(true)),
        ("scalingProvider", json!("local")),
    ] {
        columns.entry(name).or_insert(value);
    }
    Policy::read(&row).map_err(|error| refused("policy_invalid", file, error))
}

fn read_load(arguments: &SimulateArgs) -> Result<Vec<Point>, Failure> {
    let bad = |why: &str| Err(Failure::usage("load_invalid", why, "See `voiceai-scaler simulate --help`."));
    if SHAPES.contains(&arguments.load.as_str()) {
        let sane = |number: f64| number.is_finite() && number >= 0.0;
        if !(arguments.hours > 0.0
            && arguments.hours <= 24.0 * 366.0
            && sane(arguments.low)
            && sane(arguments.high))
        {
            return bad("--hours must be above 0 and at most a year; --low and --high must be 0 or more");
        }
        return shape(&arguments.load, arguments.hours, arguments.low, arguments.high)
            .map_or_else(|| bad("no such shape"), Ok);
    }
    let file = Path::new(&arguments.load);
    let text = read_file(file)?;
    let mut points: Vec<Point> = Vec::new();
    let mut first = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty()
            || line.starts_with('#')
            || (number == 0 && line.starts_with(|c: char| c.is_alphabetic()))
        {
            continue;
        }
        let wrong = |why: &str| refused("load_invalid", file, format!("line {}: {why}", number + 1));
        let (at, load) = line.split_once(',').ok_or_else(|| wrong("expected `at,load`"))?;
        let at = seconds(at.trim()).ok_or_else(|| wrong("`at` is neither seconds nor an RFC 3339 time"))?;
        let at_s = at - *first.get_or_insert(at);
        let load = match load.trim() {
            "" => None,
            text => Some(
                text.parse::<f64>()
                    .ok()
                    .filter(|load| load.is_finite() && *load >= 0.0)
                    .ok_or_else(|| wrong("`load` is not a number of 0 or more"))?,
            ),
        };
        if points.last().is_some_and(|last| last.at_s >= at_s) {
            return Err(wrong("`at` must rise from line to line"));
        }
        points.push(Point { at_s, load });
    }
    let evaluations = points.last().map_or(0.0, |last| last.at_s) / arguments.interval.as_secs_f64().max(0.1);
    if points.is_empty() || evaluations > 2_000_000.0 {
        return Err(refused("load_invalid", file, "no points, or more than two million evaluations"));
    }
    Ok(points)
}

#[allow(clippy::cast_precision_loss)] // milliseconds of this century
fn seconds(text: &str) -> Option<f64> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.or_else(|| text.parse::<Timestamp>().ok().map(|at| at.as_millisecond() as f64 / 1000.0))
}

fn text(rehearsals: &[Rehearsal], output: Output) -> String {
    let column =
        |name, of: fn(&Summary) -> String| Column::new(name, move |one: &Rehearsal| of(&one.run.summary));
    let mut text = output.table(
        rehearsals,
        &[
            Column::new("POLICY", |one: &Rehearsal| one.policy.clone()),
            column("STARTS", |sum| sum.starts.to_string()),
            column("STOPS", |sum| sum.stops.to_string()),
            column("CALLED BACK", |sum| sum.called_back.to_string()),
            column("MOST", |sum| sum.servers_max.to_string()),
            column("ABOVE THRESHOLD", |sum| share(sum.seconds_above_threshold, sum.seconds)),
            column("OVERLOADED", |sum| share(sum.seconds_overloaded, sum.seconds)),
            column("SERVER HOURS", |sum| {
                format!("{:.1} (ideal {:.1})", sum.server_hours, sum.ideal_server_hours)
            }),
            column("COST", |sum| format!("{:.2} (ideal {:.2})", sum.cost, sum.ideal_cost)),
        ],
    );
    for one in rehearsals {
        let every = one.run.moments.len().div_ceil(LINES).max(1);
        let lines: Vec<&Moment> = one.run.moments.iter().step_by(every).collect();
        let _ = write!(text, "\n{}\n", one.policy);
        text.push_str(&output.table(
            &lines,
            &[
                Column::new("AT", |moment: &&Moment| hours(moment.at_s)),
                Column::new("LOAD", |moment: &&Moment| format!("{:.0}", moment.load)),
                Column::new("CAPACITY", |moment: &&Moment| format!("{:.0}", moment.capacity)),
                Column::new("ACTIVE", |moment: &&Moment| moment.active.to_string()),
                Column::new("BOOTING", |moment: &&Moment| moment.booting.to_string()),
                Column::new("DRAINING", |moment: &&Moment| moment.draining.to_string()),
                Column::new("REASON", |moment: &&Moment| moment.reason.as_str().to_owned()),
            ],
        ));
    }
    text
}

fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", 100.0 * part / whole) } else { "-".to_owned() }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a length of time, not negative
fn hours(at_s: f64) -> String {
    let minutes = (at_s / 60.0) as u64;
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

/// One page with nothing outside of it: a drawing for each policy, load as an area, capacity as a line.
fn page(rehearsals: &[Rehearsal]) -> String {
    let top = rehearsals
        .iter()
        .flat_map(|one| &one.run.moments)
        .map(|moment| moment.load.max(moment.capacity))
        .fold(1.0, f64::max);
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Scaling rehearsal</title><style>\
         :root{color-scheme:light dark;font:14px system-ui}body{max-width:1000px;margin:2em auto;padding:0 1em}\
         svg{width:100%;height:260px;border:1px solid #8886}table{border-collapse:collapse}\
         td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #8884}th:first-child,td:first-child{text-align:left}\
         .load{fill:#4a90d955}.capacity{fill:none;stroke:#d9534f;stroke-width:2;vector-effect:non-scaling-stroke}\
         </style><h1>Scaling rehearsal</h1><p>Blue: calls that want to be carried. Red: capacity in service.</p>\
         <table><tr><th>policy<th>starts<th>stops<th>above threshold<th>overloaded<th>server hours<th>ideal<th>cost</tr>",
    );
    for one in rehearsals {
        let sum = &one.run.summary;
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.1}<td>{:.1}<td>{:.2}</tr>",
            escaped(&one.policy),
            sum.starts,
            sum.stops,
            share(sum.seconds_above_threshold, sum.seconds),
            share(sum.seconds_overloaded, sum.seconds),
            sum.server_hours,
            sum.ideal_server_hours,
            sum.cost
        );
    }
    page.push_str("</table>");
    for one in rehearsals {
        let _ = write!(page, "<h2>{}</h2>{}", escaped(&one.policy), drawing(&one.run.moments, top));
    }
    page.push_str("</html>\n");
    page
}

fn drawing(moments: &[Moment], top: f64) -> String {
    let end = moments.last().map_or(1.0, |moment| moment.at_s.max(1.0));
    let every = moments.len().div_ceil(4000).max(1);
    let (mut load, mut capacity) = (String::from("M0,1000"), String::new());
    for (index, moment) in moments.iter().step_by(every).enumerate() {
        let x = 1000.0 * moment.at_s / end;
        let y = |value: f64| 1000.0 * (1.0 - value / top);
        let _ = write!(load, "L{x:.2},{:.1}", y(moment.load));
        // A step: the old height up to here, then the new one.
        let command = if index == 0 { format!("M{x:.2},") } else { format!("H{x:.2}V") };
        let _ = write!(capacity, "{command}{:.1}", y(moment.capacity));
    }
    format!(
        "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"load and capacity over {}\"><path class=\"load\" d=\"{load}L1000,1000Z\"/>\
         <path class=\"capacity\" d=\"{capacity}\"/></svg>",
        hours(end)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
