//! Rehearsing a policy: a load over time, played through the very function that decides, with boot times and drains.
//!
//! Pure like the rest: the same load and policy always give the same run. Servers share the load evenly; calls on a draining
//! server end at a constant rate; what exceeds the capacity in service is counted as refused.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::decide::{Action, Decision, Reason, decide};
use crate::fleet::{GroupState, Phase, Sample, Server};
use crate::heartbeat::{Beat, Reading, Unknown};
use crate::policy::Policy;

/// The load from one moment on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the beginning.
    pub at_s: f64,
    /// Calls; `None`: no metrics arrive, and the calls stay as they were.
    pub load: Option<f64>,
}

/// How the world around the policy behaves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct World {
    /// Between two evaluations.
    pub interval_s: f64,
    /// From the decision to a server in service.
    pub boot_s: f64,
    /// Mean length of a call.
    pub call_s: f64,
    /// Calls a server takes.
    pub capacity: u32,
    /// Price of one server for an hour.
    pub price_per_hour: f64,
}

/// One evaluation of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds since the beginning.
    pub at_s: f64,
    /// Calls that want to be carried.
    pub load: f64,
    /// Servers in service.
    pub active: u32,
    /// Servers booting.
    pub booting: u32,
    /// Servers draining.
    pub draining: u32,
    /// What the servers in service can carry.
    pub capacity: f64,
    /// Why this was decided.
    pub reason: Reason,
}

/// What a run comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Length of the run.
    pub seconds: f64,
    /// Servers made.
    pub starts: u32,
    /// Servers taken away.
    pub stops: u32,
    /// Drains called off.
    pub called_back: u32,
    /// Most servers at a time, of every kind.
    pub servers_max: u32,
    /// Time with utilisation above the upper threshold.
    pub seconds_above_threshold: f64,
    /// Time with more calls than capacity.
    pub seconds_overloaded: f64,
    /// Calls refused, times their duration so far.
    pub refused_call_seconds: f64,
    /// Hours of servers of every kind.
    pub server_hours: f64,
    /// What they cost.
    pub cost: f64,
    /// Server hours of a fleet that always has just enough servers at once.
    pub ideal_server_hours: f64,
    /// What those would cost.
    pub ideal_cost: f64,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// In short.
    pub summary: Summary,
    /// Each evaluation.
    pub moments: Vec<Moment>,
}

/// Evaluations that are remembered: at the usual interval, more than any window looks back.
const HISTORY_MAX: usize = 2_000;

struct Sim {
    name: u32,
    phase: Phase,
    since_s: f64,
    calls: f64,
}

/// Plays `load` (in the order of time, not empty) through the policy. The fleet begins with the policy's minimum, in service.
#[must_use]
pub fn simulate(policy: &Policy, load: &[Point], world: &World) -> Run {
    let end_s = load.last().map_or(0.0, |point| point.at_s);
    let mut runner = Runner::new(policy, world);
    let mut at_s = 0.0;
    while at_s <= end_s {
        runner.step(at_s, at(load, at_s));
        at_s += world.interval_s.max(0.1);
    }
    runner.finish()
}

/// The point that holds at a moment.
fn at(load: &[Point], at_s: f64) -> Option<f64> {
    load.iter().rev().find(|point| point.at_s <= at_s).or(load.first()).and_then(|point| point.load)
}

struct Runner<'a> {
    policy: &'a Policy,
    world: &'a World,
    fleet: Vec<Sim>,
    next_name: u32,
    wanted: f64,
    history: Vec<Sample>,
    last_up: Option<Timestamp>,
    last_down: Option<Timestamp>,
    creates: Vec<f64>,
    moments: Vec<Moment>,
    summary: Summary,
}

impl<'a> Runner<'a> {
    fn new(policy: &'a Policy, world: &'a World) -> Self {
        let fleet = (1..=policy.min)
            .map(|name| Sim { name, phase: Phase::Active, since_s: 0.0, calls: 0.0 })
            .collect();
        Self {
            policy,
            world,
            fleet,
            next_name: policy.min + 1,
            wanted: 0.0,
            history: Vec::new(),
            last_up: None,
            last_down: None,
            creates: Vec::new(),
            moments: Vec::new(),
            summary: Summary {
                seconds: 0.0,
                starts: 0,
                stops: 0,
                called_back: 0,
                servers_max: 0,
                seconds_above_threshold: 0.0,
                seconds_overloaded: 0.0,
                refused_call_seconds: 0.0,
                server_hours: 0.0,
                cost: 0.0,
                ideal_server_hours: 0.0,
                ideal_cost: 0.0,
            },
        }
    }

    fn each(&self) -> f64 {
        let said = u64::from(self.world.capacity);
        u32::try_from(self.policy.capacity_of(Some(said))).map_or(f64::MAX, f64::from)
    }

    fn step(&mut self, at_s: f64, load: Option<f64>) {
        let dark = load.is_none();
        self.wanted = load.unwrap_or(self.wanted).max(0.0);
        self.pass_time(at_s);
        self.spread();
        let now = moment(at_s);
        let decision = decide(&self.state(at_s, now, dark), self.policy, now);
        self.record(at_s, &decision);
        self.history.push(decision.sample(now));
        if self.history.len() > HISTORY_MAX {
            self.history.drain(..HISTORY_MAX / 2);
        }
        self.apply(at_s, now, &decision);
    }

    /// Boots end, calls on draining servers end, and drained servers go.
    fn pass_time(&mut self, at_s: f64) {
        let stays = (-self.world.interval_s / self.world.call_s.max(1.0)).exp();
        for server in &mut self.fleet {
            match server.phase {
                Phase::Booting if at_s - server.since_s >= self.world.boot_s => server.phase = Phase::Active,
                Phase::Draining { .. } => server.calls *= stays,
                _ => {}
            }
        }
        let before = self.fleet.len();
        self.fleet.retain(|server| !matches!(server.phase, Phase::Draining { .. }) || server.calls >= 0.5);
        self.summary.stops += to_u32(before - self.fleet.len());
    }

    /// What the draining ones do not carry is shared by those in service.
    fn spread(&mut self) {
        let carried: f64 = self.draining().map(|server| server.calls).sum();
        let each = self.each();
        let active = self.count(Phase::Active);
        let share =
            if active == 0 { 0.0 } else { ((self.wanted - carried).max(0.0) / f64::from(active)).min(each) };
        for server in self.fleet.iter_mut().filter(|server| server.phase == Phase::Active) {
            server.calls = share;
        }
    }

    fn draining(&self) -> impl Iterator<Item = &Sim> {
        self.fleet.iter().filter(|server| matches!(server.phase, Phase::Draining { .. }))
    }

    fn count(&self, phase: Phase) -> u32 {
        to_u32(self.fleet.iter().filter(|server| server.phase == phase).count())
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // calls on one server: small, not negative
    fn state(&self, at_s: f64, now: Timestamp, dark: bool) -> GroupState {
        let servers = self.fleet.iter().map(|server| {
            let beat = Beat {
                service: None,
                group: None,
                active: server.calls.round() as u64,
                capacity: Some(u64::from(self.world.capacity)),
                at: now,
                version: None,
            };
            Server {
                name: server.name.to_string(),
                phase: server.phase,
                reading: if dark { Reading::Unknown(Unknown::Missing) } else { Reading::Known(beat) },
                silent_for: SignedDuration::ZERO,
                created_at: moment(server.since_s),
                protected_until: None,
            }
        });
        let mut state = GroupState {
            servers: servers.collect(),
            last_up: self.last_up,
            last_down: self.last_down,
            history: self.history.clone(),
            ..GroupState::default()
        };
        state.limits.creates_last_hour =
            to_u32(self.creates.iter().filter(|made| at_s - **made < 3600.0).count());
        state
    }

    fn record(&mut self, at_s: f64, decision: &Decision) {
        let (dt, each) = (self.world.interval_s, self.each());
        let active = self.count(Phase::Active);
        let carried: f64 = self.draining().map(|server| server.calls).sum();
        let capacity = f64::from(active) * each;
        let over = (self.wanted - carried - capacity).max(0.0);
        let all = to_u32(self.fleet.len());
        let summary = &mut self.summary;
        summary.seconds += dt;
        summary.servers_max = summary.servers_max.max(all);
        if self.wanted > self.policy.scale_up_above * capacity {
            summary.seconds_above_threshold += dt;
        }
        if over > 0.0 {
            summary.seconds_overloaded += dt;
            summary.refused_call_seconds += over * dt;
        }
        summary.server_hours += f64::from(all) * dt / 3600.0;
        let needed = (self.wanted / (self.policy.scale_up_above * each).max(1e-9)).ceil();
        let ideal = needed.clamp(f64::from(self.policy.min), f64::from(self.policy.max));
        summary.ideal_server_hours += ideal * dt / 3600.0;
        self.moments.push(Moment {
            at_s,
            load: self.wanted,
            active,
            booting: self.count(Phase::Booting),
            draining: to_u32(self.draining().count()),
            capacity,
            reason: decision.reason,
        });
    }

    fn apply(&mut self, at_s: f64, now: Timestamp, decision: &Decision) {
        match &decision.action {
            Action::Hold => {}
            Action::Add { undrain, create } => {
                if decision.reason != Reason::BelowMinimum {
                    self.last_up = Some(now);
                }
                for server in &mut self.fleet {
                    if undrain.contains(&server.name.to_string()) {
                        server.phase = Phase::Active;
                        self.summary.called_back += 1;
                    }
                }
                for _ in 0..*create {
                    self.fleet.push(Sim {
                        name: self.next_name,
                        phase: Phase::Booting,
                        since_s: at_s,
                        calls: 0.0,
                    });
                    self.next_name += 1;
                    self.creates.push(at_s);
                    self.summary.starts += 1;
                }
            }
            Action::Remove { drain } => {
                self.last_down = Some(now);
                for server in &mut self.fleet {
                    if drain.contains(&server.name.to_string()) {
                        server.phase = Phase::Draining { cancellable: true, by_operator: false };
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Run {
        self.summary.cost = self.summary.server_hours * self.world.price_per_hour;
        self.summary.ideal_cost = self.summary.ideal_server_hours * self.world.price_per_hour;
        Run { summary: self.summary, moments: self.moments }
    }
}

/// A made-up load of a named shape, a point every half minute, between `low` and `high` calls.
#[must_use]
pub fn shape(name: &str, hours: f64, low: f64, high: f64) -> Option<Vec<Point>> {
    let seconds = hours * 3600.0;
    let of: fn(f64) -> Option<f64> = match name {
        "step" => |x| Some(if (0.25..0.75).contains(&x) { 1.0 } else { 0.0 }),
        "sine" | "outage" => |x| Some((1.0 - (x * std::f64::consts::TAU * 2.0).cos()) / 2.0),
        "spike" => |x| Some(if (0.5..0.53).contains(&x) { 1.0 } else { 0.1 }),
        "sawtooth" => |x| Some((x * 6.0).fract()),
        _ => return None,
    };
    let dark = |x: f64| name == "outage" && (0.2..0.35).contains(&x);
    let mut points = Vec::new();
    let mut at_s = 0.0;
    while at_s <= seconds {
        let x = at_s / seconds.max(1.0);
        let load = of(x).filter(|_| !dark(x)).map(|share| low + (high - low) * share);
        points.push(Point { at_s, load });
        at_s += 30.0;
    }
    Some(points)
}

/// The names of [`shape`].
pub const SHAPES: [&str; 5] = ["step", "sine", "spike", "sawtooth", "outage"];

#[allow(clippy::cast_possible_truncation)] // a run of years is still far below the range
fn moment(at_s: f64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_millis((at_s * 1000.0) as i64)
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const WORLD: World =
        World { interval_s: 30.0, boot_s: 180.0, call_s: 180.0, capacity: 100, price_per_hour: 0.5 };

    fn policy(config: Value) -> Policy {
        Policy::read(&json!({
            "id": "1", "name": "g", "scalingEnabled": true, "scalingProvider": "local", "minInstances": 2,
            "maxInstances": 12, "cooldownSeconds": 120, "scalingConfig": config,
        }))
        .expect("a policy")
    }

    fn run(shape_name: &str, config: Value) -> Run {
        simulate(&policy(config), &shape(shape_name, 8.0, 50.0, 700.0).expect("a shape"), &WORLD)
    }

    #[test]
    fn every_shape_stays_within_its_bounds_and_comes_back() {
        for name in SHAPES {
            let run = run(name, json!({}));
            assert!(run.summary.servers_max <= 12, "{name}: {:?}", run.summary);
            assert!(run.moments.iter().all(|moment| moment.active >= 1), "{name}");
            assert!(run.summary.starts >= 1 && run.summary.starts <= 80, "{name}: {:?}", run.summary);
            let changes = f64::from(run.summary.starts + run.summary.stops) / 8.0;
            assert!(changes < 20.0, "{name}: {changes} starts and stops an hour");
            assert!(run.summary.server_hours > 0.0 && run.summary.ideal_server_hours > 0.0);
        }
        assert!(shape("nonsense", 1.0, 0.0, 1.0).is_none());
    }

    #[test]
    fn a_steady_load_starts_and_stops_nothing_once_it_is_met() {
        let load: Vec<Point> =
            (0..960).map(|n| Point { at_s: f64::from(n) * 30.0, load: Some(400.0) }).collect();
        let run = simulate(&policy(json!({})), &load, &WORLD);
        let late: Vec<_> = run.moments.iter().skip(200).collect();
        assert!(
            late.iter()
                .all(|moment| moment.active == late[0].active && moment.booting + moment.draining == 0)
        );
        assert_eq!(run.summary.stops, 0);
    }

    #[test]
    fn nothing_is_removed_while_no_metrics_arrive() {
        let run = run("outage", json!({}));
        let dark: Vec<_> = run.moments.iter().filter(|moment| moment.reason == Reason::Blind).collect();
        assert!(dark.len() > 50, "{}", dark.len());
        let first = dark[0];
        assert!(dark.iter().all(|moment| moment.active + moment.booting >= first.active));
    }

    #[test]
    fn a_panic_rule_shortens_a_spike() {
        let plain = run("spike", json!({})).summary;
        let panic = run("spike", json!({"panicThreshold": 0.9, "maxSurge": 10})).summary;
        assert!(panic.refused_call_seconds < plain.refused_call_seconds, "{panic:?} {plain:?}");
    }

    #[test]
    fn the_same_run_twice_is_the_same() {
        assert_eq!(run("sine", json!({})), run("sine", json!({})));
    }
}
