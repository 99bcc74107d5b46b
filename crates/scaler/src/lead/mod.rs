//! The leader's loops: evaluate on a timer, carry operations out, keep routing true.

mod evaluator;
mod ghosts;
mod orphans;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_postgres::Tenure;
use voiceai_runtime::{Pulse, Shutdown, Vitals};

use crate::act::{Engine, chain};
use crate::store::Pruned;

use evaluator::not_published;
pub use evaluator::{Evaluated, Evaluator, Took, action_word, drain_settings};
pub use orphans::Places;

/// How often open operations are looked for.
const OPERATIONS_EVERY: Duration = Duration::from_millis(500);
/// How often names that beat are looked for in the key space.
const DISCOVER_EVERY: Duration = Duration::from_secs(10);
/// Longest walk for them of a process that does not lead.
const STANDBY_WALK: Duration = Duration::from_secs(20);
/// How often old rows are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(300);
/// Parts of old rows removed at a time, with a breath between them: more than a large fleet writes in the meantime.
const PRUNE_PARTS: u32 = 60;
const PRUNE_BREATH: Duration = Duration::from_millis(100);
/// What the loops need besides the engine.
#[derive(Debug, Clone)]
pub struct LeadSettings {
    /// ENVIRONMENT, in lower case: part of every server's name.
    pub environment: String,
    /// INSTANCE_ID: who decides.
    pub instance_id: String,
    /// Between two evaluations.
    pub evaluation_interval: Duration,
    /// Between two looks for orphans.
    pub orphan_sweep: Duration,
    /// Most servers over all groups.
    pub fleet_max: Option<u32>,
    /// How long what is over stays in the database.
    pub history_retention: Duration,
    /// How long running scripts may go on when the process stops; then they are ended.
    pub stop_patience: Duration,
}

/// Leads whenever this process is elected, until shutdown.
pub async fn run(
    engine: Arc<Engine>,
    settings: LeadSettings,
    mut tenures: watch::Receiver<Option<Tenure>>,
    shutdown: Shutdown,
    vitals: Vitals,
) {
    let stopping = shutdown.stopping();
    let pulse = vitals.register("scaler leader", Duration::from_secs(60));
    loop {
        pulse.beat();
        let tenure = tenures.borrow_and_update().clone();
        let Some(tenure) = tenure else {
            vitals.set_status("standing by");
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = tenures.changed() => if changed.is_err() { return },
                () = walk_and_wait(&engine) => {}
            }
            continue;
        };
        vitals.set_status(format!("leading, term {}", tenure.term().number));
        let stop = shutdown.stopping().child_token();
        let kill = shutdown.forced().child_token();
        let _ends = (stop.clone().drop_guard(), kill.clone().drop_guard());
        let mut lead = Lead {
            engine: Arc::clone(&engine),
            settings: settings.clone(),
            tenure: tenure.clone(),
            stop: stop.clone(),
            kill: kill.clone(),
            shutdown: shutdown.clone(),
            tasks: HashMap::new(),
            evaluations: 0,
            evaluator: Evaluator::new(Arc::clone(&engine), settings.clone(), tenure.clone()),
            absent: HashMap::new(),
            left: Vec::new(),
            asking: None,
            places: Places::new(),
            sweeping: None,
            pruning: None,
        };
        tokio::select! {
            () = lead.lead(&vitals, &pulse) => {}
            // Nothing that a script does now could be written any more: its end is the successor's to find out.
            () = ended(&mut tenures, &tenure) => kill.cancel(),
            () = stopping.cancelled() => {}
        }
        stop.cancel();
        lead.settle(&pulse).await;
        if stopping.is_cancelled() {
            return;
        }
    }
}

/// Whoever stands by knows the servers of others, so that its first evaluation need not look for them.
async fn walk_and_wait(engine: &Engine) {
    // In a key space that takes longer the rest is for the leader's own walk: standing by has to show signs of life.
    match tokio::time::timeout(STANDBY_WALK, engine.heartbeats.discover()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "names that beat cannot be looked for"),
        Err(_) => tracing::debug!("names that beat not looked for to the end"),
    }
    tokio::time::sleep(DISCOVER_EVERY).await;
}

/// Returns once another tenure than `mine` is told, or none.
async fn ended(tenures: &mut watch::Receiver<Option<Tenure>>, mine: &Tenure) {
    loop {
        if tenures.changed().await.is_err() {
            return;
        }
        let now = tenures.borrow_and_update().clone();
        if now.is_none_or(|tenure| tenure.term() != mine.term()) {
            return;
        }
    }
}

/// One tenure.
struct Lead {
    engine: Arc<Engine>,
    settings: LeadSettings,
    tenure: Tenure,
    /// No further step is begun.
    stop: CancellationToken,
    /// Running scripts are ended.
    kill: CancellationToken,
    shutdown: Shutdown,
    tasks: HashMap<Uuid, JoinHandle<()>>,
    evaluator: Evaluator,
    /// Evaluations made in this tenure.
    evaluations: u64,
    /// How often in a row the provider said of a silent server that it has none such.
    absent: HashMap<String, u32>,
    /// Servers that are left to a person, by the last evaluation.
    left: Vec<String>,
    /// The asking that is under way: silent servers, and whether the provider has none such.
    asking: Option<JoinHandle<Vec<ghosts::Asked>>>,
    /// Where servers of ours may be, by the last evaluation.
    places: Places,
    /// The look for orphans that is under way.
    sweeping: Option<JoinHandle<()>>,
    /// The removal of old rows that is under way.
    pruning: Option<JoinHandle<()>>,
}

impl Lead {
    async fn lead(&mut self, vitals: &Vitals, leader_pulse: &Pulse) {
        let bound = self.settings.evaluation_interval * 3 + Duration::from_secs(120);
        let pulse = vitals.register("evaluation", bound);
        let discovery = self.spawn_discovery();
        self.spawn_proxies();
        let mut evaluations = interval(self.settings.evaluation_interval);
        let mut operations = interval(OPERATIONS_EVERY);
        let mut prunes = interval(PRUNE_EVERY);
        let mut ghosts = interval(self.ghosts_every());
        let mut orphans = interval(self.settings.orphan_sweep);
        let mut reconnects = self.engine.dispatcher.redis().reconnected();
        let mut reconnected = true;
        loop {
            leader_pulse.beat();
            tokio::select! {
                _ = operations.tick() => self.resume_operations().await,
                _ = evaluations.tick() => {
                    self.evaluate().await;
                    self.resume_operations().await;
                }
                _ = prunes.tick() => self.prune(),
                _ = ghosts.tick() => self.sweep_ghosts().await,
                _ = orphans.tick() => self.sweep_orphans(),
                told = reconnects.recv(), if reconnected => {
                    // A Redis that came back may have come back empty.
                    reconnected = !matches!(told, Err(tokio::sync::broadcast::error::RecvError::Closed));
                    self.rebuild_routing().await;
                }
            }
            pulse.beat();
            if discovery.is_finished() {
                tracing::error!("the look for unmanaged servers has ended");
                return;
            }
        }
    }

    fn spawn_proxies(&self) {
        let (engine, tenure, stop) = (Arc::clone(&self.engine), self.tenure.clone(), self.stop.clone());
        self.shutdown.spawn("proxies", async move {
            let keep =
                || Arc::clone(&engine.proxies).keep(engine.dispatcher.clone(), tenure.clone(), stop.clone());
            voiceai_runtime::restarting("proxies", &stop, keep).await;
        });
    }

    fn spawn_discovery(&self) -> JoinHandle<()> {
        let reader = self.engine.heartbeats.clone();
        let cancel = self.stop.clone();
        self.shutdown.spawn("discovery", async move {
            loop {
                let walked = tokio::select! {
                    () = cancel.cancelled() => return,
                    walked = reader.discover() => walked,
                };
                if let Err(error) = walked {
                    tracing::debug!(%error, "names that beat cannot be looked for");
                }
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(DISCOVER_EVERY) => {}
                }
            }
        })
    }

    /// Gives every operation a task of its own that has none.
    async fn resume_operations(&mut self) {
        self.tasks.retain(|_, task| !task.is_finished());
        if self.tenure.is_held() || !self.tenure.is_trusted() {
            return;
        }
        let open = match self.engine.store.open_operations().await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "open operations cannot be read");
                return;
            }
        };
        for id in open {
            if !self.tasks.contains_key(&id) {
                let engine = Arc::clone(&self.engine);
                let carry = engine.carry(id, self.tenure.clone(), self.stop.clone(), self.kill.clone());
                let task = self.shutdown.spawn(format!("operation {id}"), carry);
                self.tasks.insert(id, task);
            }
        }
    }

    async fn evaluate(&mut self) {
        let began = std::time::Instant::now();
        match self.evaluator.evaluate().await {
            Ok(seen) => {
                let took_ms = began.elapsed().as_millis();
                self.evaluations += 1;
                let (number, groups, servers) = (self.evaluations, seen.groups, seen.servers);
                let ms = |part: Duration| part.as_millis();
                tracing::debug!(
                    number,
                    groups,
                    servers,
                    took_ms,
                    read_ms = ms(seen.took.read),
                    decide_ms = ms(seen.took.decide),
                    write_ms = ms(seen.took.write),
                    route_ms = ms(seen.took.route),
                    "evaluation made"
                );
                let first = self.places.is_empty();
                (self.places, self.left) = (seen.places, seen.left_to_a_person);
                if first {
                    self.sweep_orphans();
                }
            }
            Err(error) if error.ends_leadership() => {
                tracing::warn!(error = %chain(&error), "evaluation left to the new leader");
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "evaluation not made; trying again at the next one");
            }
        }
        opentelemetry::global::meter("voiceai")
            .f64_histogram("voiceai.scaler.evaluation.duration")
            .with_unit("s")
            .with_description("How long one evaluation of all groups took.")
            .build()
            .record(began.elapsed().as_secs_f64(), &[]);
    }

    async fn rebuild_routing(&self) {
        if !self.tenure.is_held() && self.tenure.is_trusted() {
            not_published(self.engine.rebuild_routing(&self.tenure).await);
        }
    }

    /// Starts the removal of what is old, unless it is under way: it holds neither evaluations nor operations up.
    fn prune(&mut self) {
        if self.pruning.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (engine, stop) = (Arc::clone(&self.engine), self.stop.clone());
        let keep = SignedDuration::try_from(self.settings.history_retention).unwrap_or(SignedDuration::MAX);
        self.pruning = Some(self.shutdown.spawn("prune", async move {
            // A script may go on for a little after its limit.
            let age = engine.providers.limit().unsigned_abs() + Duration::from_secs(60);
            let _ = tokio::task::spawn_blocking(move || crate::cloud_init::sweep(age)).await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = remove_old(&engine, keep) => {}
            }
        }));
    }

    /// Waits until no task of this tenure runs any more: each stops before its next effect.
    async fn settle(&mut self, pulse: &Pulse) {
        let mut tasks: Vec<JoinHandle<()>> = self.tasks.drain().map(|(_, task)| task).collect();
        let until = tokio::time::Instant::now() + self.settings.stop_patience;
        while !tasks.is_empty() {
            pulse.beat();
            if tokio::time::Instant::now() >= until {
                self.kill.cancel();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            tasks.retain(|task| !task.is_finished());
        }
        // These only look, or delete what no row stands for: their scripts may as well be ended.
        self.kill.cancel();
        if let Some(task) = self.asking.take() {
            let _ = task.await;
        }
        if let Some(task) = self.sweeping.take() {
            let _ = task.await;
        }
        if let Some(task) = self.pruning.take() {
            let _ = task.await;
        }
    }
}

async fn remove_old(engine: &Engine, keep: SignedDuration) {
    let mut all = Pruned::default();
    for _ in 0..PRUNE_PARTS {
        match engine.store.prune(keep).await {
            Ok(part) if part.is_empty() => break,
            Ok(part) => all = all.and(part),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "old rows not removed; trying again later");
                break;
            }
        }
        tokio::time::sleep(PRUNE_BREATH).await;
    }
    if !all.is_empty() {
        let Pruned { decisions, operations, servers } = all;
        tracing::info!(decisions, operations, servers, "old rows removed");
    }
}

fn interval(every: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
