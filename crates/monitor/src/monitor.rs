//! The loop: asks every service, judges the answers, writes them down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::{PgPool, Tenure};
use voiceai_runtime::Pulse;

use crate::announce::{Announcer, ServiceEvent};
use crate::decide::{Change, Standing, State, judge};
use crate::error::{MonitorError, chain};
use crate::metrics;
use crate::probe::{Observation, Prober};
use crate::settings::{MonitorSettings, Service};
use crate::store::{self, Judged};

/// Answers wait so long for others, so that a thousand of them are a few statements.
const GATHER: Duration = Duration::from_millis(200);
/// And at most so many are one statement.
const BATCH: usize = 250;
/// So many changes of a round are told one by one, as they come. The rest of them wait for its end and are told together: when the
/// network is gone, a thousand mails help nobody.
const TOLD_ALONE: usize = 10;
/// So many of those are one transaction.
const TOLD_TOGETHER: usize = 200;
/// Where this process does not lead it looks again after that time, beside being told.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Watches services, on the leader. Cheap to clone; one of the clones may run at a time.
#[derive(Clone)]
pub struct Monitor {
    pool: PgPool,
    prober: Prober,
    settings: MonitorSettings,
    services: Arc<[Service]>,
    announcer: Announcer,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a round came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Services that were asked and written down.
    pub asked: usize,
    /// Alerts opened.
    pub opened: usize,
    /// Alerts closed.
    pub closed: usize,
    /// From its beginning to its last write.
    pub took: Duration,
}

impl Monitor {
    /// A monitor that has not begun. `announcer` tells of changes.
    #[must_use]
    pub fn new(pool: PgPool, prober: Prober, settings: MonitorSettings, announcer: Announcer) -> Self {
        let services = settings.services.clone().into();
        Self { pool, prober, settings, services, announcer }
    }

    /// Longest time for which [`Monitor::run`] does not beat, beside what PostgreSQL takes.
    #[must_use]
    pub fn silence_max(&self) -> Duration {
        self.settings.interval.max(LOOK_AGAIN) + self.settings.timeout
    }

    /// Runs until `stopping`, whenever `tenure` says that this process leads.
    pub async fn run(
        self,
        mut tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!(services = self.services.len(), "health monitor started");
        let (mut election_is_over, mut troubled) = (false, false);
        while !stopping.is_cancelled() {
            pulse.beat();
            let leads = tenure.borrow_and_update().clone().filter(Tenure::is_trusted);
            let began = Instant::now();
            let mut next = LOOK_AGAIN;
            if let Some(held) = &leads {
                let done = tokio::select! {
                    () = stopping.cancelled() => break,
                    // What was asked so far is written; the rest is the next leader's.
                    () = ended(&mut tenure, held) => None,
                    done = self.round(held, &pulse) => Some(done),
                };
                if let Some(done) = done {
                    troubled = self.tell(&done, troubled);
                }
                next = (began + self.settings.interval).saturating_duration_since(Instant::now());
            }
            if leads.is_none_or(|held| !held.is_trusted()) {
                metrics::get().forget();
            }
            pulse.beat();
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(next) => {}
                changed = tenure.changed(), if !election_is_over => election_is_over = changed.is_err(),
            }
        }
        metrics::get().forget();
        tracing::info!("health monitor stopped");
    }

    /// Says what came of a round; whether there is trouble now.
    fn tell(&self, done: &Result<Round, MonitorError>, troubled: bool) -> bool {
        match done {
            Ok(round) => {
                if troubled {
                    tracing::info!("the watched services are written down again");
                }
                let late = round.took > self.settings.interval;
                metrics::get().round(round.took, late);
                let took_ms = u64::try_from(round.took.as_millis()).unwrap_or(u64::MAX);
                if late {
                    tracing::warn!(
                        took_ms,
                        "a round took longer than HEALTH_CHECK_INTERVAL; raise it, or HEALTH_CHECK_CONCURRENCY"
                    );
                }
                tracing::debug!(asked = round.asked, took_ms, "watched services asked");
                false
            }
            Err(MonitorError::Replaced { .. }) => troubled,
            Err(error) => {
                if !troubled {
                    tracing::warn!(error = %chain(error), "the watched services cannot be written down now");
                }
                true
            }
        }
    }

    /// One round: every service is asked once, and written down as its answer comes.
    ///
    /// # Errors
    /// As the database says; then some services may be written down and others not. [`MonitorError::Replaced`] when another leads by
    /// now.
    pub async fn round(&self, tenure: &Tenure, pulse: &Pulse) -> Result<Round, MonitorError> {
        let began = Instant::now();
        let names: Vec<String> = self.services.iter().map(|service| service.name().to_owned()).collect();
        let gone = store::forget(&self.pool, tenure.term(), &names).await?;
        if !gone.is_empty() {
            tracing::info!(services = gone.join(","), "services are not watched any more");
        }
        let mut writing = Writing {
            monitor: self,
            tenure,
            before: store::standings(&self.pool).await?,
            together: Vec::new(),
            told: 0,
            round: Round::default(),
        };
        let (tell, mut told) = mpsc::channel(BATCH);
        // Ends with the round, also when that is cut off.
        let _asking = self.ask_all(&tell);
        drop(tell);
        let mut failed = None;
        loop {
            pulse.beat();
            let answers = gather(&mut told).await;
            if answers.is_empty() {
                break;
            }
            // The rest is still asked and tried to be written: each batch stands for itself.
            if let Err(error) = writing.take(answers).await {
                if matches!(error, MonitorError::Replaced { .. }) {
                    return Err(error);
                }
                failed.get_or_insert(error);
            }
        }
        pulse.beat();
        if let Err(error) = writing.tell_together().await {
            failed.get_or_insert(error);
        }
        let standings = writing.before.iter();
        metrics::get().standings(standings.map(|(name, s)| (name.as_str(), s.state, s.alert.is_some())));
        match failed {
            Some(error) => Err(error),
            None => Ok(Round { took: began.elapsed(), ..writing.round }),
        }
    }

    /// Asks all of them, so many at a time; each in a task of its own, so that none waits for what is done with another's answer.
    fn ask_all(&self, tell: &mpsc::Sender<Answer>) -> JoinSet<()> {
        let slots = Arc::new(Semaphore::new(self.settings.concurrency.max(1)));
        let mut asking = JoinSet::new();
        for number in 0..self.services.len() {
            let (services, prober) = (Arc::clone(&self.services), self.prober.clone());
            let (slots, tell) = (Arc::clone(&slots), tell.clone());
            asking.spawn(async move {
                let Ok(slot) = slots.acquire_owned().await else { return };
                let seen = prober.ask(&services[number]).await;
                drop(slot);
                let _ = tell.send(Answer { number, seen, at: Timestamp::now() }).await;
            });
        }
        asking
    }
}

/// Until this process does not lead by `held` any more. A lease that is renewed wakes the watch, too.
async fn ended(tenure: &mut watch::Receiver<Option<Tenure>>, held: &Tenure) {
    loop {
        if tenure.changed().await.is_err() {
            // The election is over; so is the process, soon.
            std::future::pending::<()>().await;
        }
        let now = tenure.borrow_and_update().clone();
        if now.is_none_or(|now| now.term() != held.term()) {
            return;
        }
    }
}

struct Answer {
    number: usize,
    seen: Observation,
    at: Timestamp,
}

/// The answers that come within a short while of the first; none once all have come.
async fn gather(told: &mut mpsc::Receiver<Answer>) -> Vec<Answer> {
    let Some(first) = told.recv().await else { return Vec::new() };
    let mut answers = vec![first];
    let end = Instant::now() + GATHER;
    while answers.len() < BATCH {
        match tokio::time::timeout_at(end, told.recv()).await {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) | Err(_) => break,
        }
    }
    answers
}

/// A round's answers on their way to the table.
struct Writing<'m> {
    monitor: &'m Monitor,
    tenure: &'m Tenure,
    before: BTreeMap<String, Standing>,
    together: Vec<Judged>,
    told: usize,
    round: Round,
}

impl Writing<'_> {
    async fn take(&mut self, answers: Vec<Answer>) -> Result<(), MonitorError> {
        let mut quiet = Vec::new();
        let mut failed = Ok(());
        for answer in answers {
            let judged = self.judge(answer);
            metrics::get().checked(judged.seen.state, judged.seen.latency);
            if judged.change.is_none() {
                quiet.push(judged);
            } else if self.told < TOLD_ALONE {
                self.told += 1;
                failed = failed.and(self.change(vec![judged]).await);
            } else {
                self.together.push(judged);
            }
        }
        if !quiet.is_empty() {
            self.check()?;
            store::write(&self.monitor.pool, self.tenure.term(), &quiet).await?;
            self.remember(&quiet);
        }
        failed
    }

    fn judge(&self, Answer { number, seen, at }: Answer) -> Judged {
        let service = &self.monitor.services[number];
        let policy = &self.monitor.settings.policy;
        let (standing, change) = judge(self.before.get(service.name()), seen.state, at, policy);
        let url = service.shown().to_owned();
        Judged { service: service.name().to_owned(), url, seen, standing, change, at }
    }

    async fn tell_together(&mut self) -> Result<(), MonitorError> {
        let rest = std::mem::take(&mut self.together);
        // Those that came back and those that went are told apart.
        let (closed, opened): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|judged| judged.seen.state == State::Healthy);
        let mut failed = Ok(());
        for part in opened.chunks(TOLD_TOGETHER).chain(closed.chunks(TOLD_TOGETHER)) {
            failed = failed.and(self.change(part.to_vec()).await);
        }
        failed
    }

    async fn change(&mut self, all: Vec<Judged>) -> Result<(), MonitorError> {
        self.check()?;
        let (pool, term) = (&self.monitor.pool, self.tenure.term());
        let events = store::change(pool, term, &self.monitor.announcer, all.clone()).await?;
        self.remember(&all);
        for judged in &all {
            let opened = matches!(judged.change, Some(Change::Open { .. }));
            self.round.opened += usize::from(opened);
            self.round.closed += usize::from(!opened);
            metrics::get().alert(if opened { "opened" } else { "closed" });
        }
        events.iter().for_each(log);
        for event in events.iter().filter(|event| !event.recovered) {
            if let Some(standing) = self.before.get_mut(&event.service) {
                standing.alert = Some(event.alert);
            }
        }
        Ok(())
    }

    fn remember(&mut self, all: &[Judged]) {
        self.round.asked += all.len();
        for judged in all {
            self.before.insert(judged.service.clone(), judged.standing);
        }
    }

    fn check(&self) -> Result<(), MonitorError> {
        let tried = "write down how the services are";
        self.tenure.check().map(drop).map_err(|_| MonitorError::Replaced { tried })
    }
}

fn log(event: &ServiceEvent) {
    let (watched, reason) = (&event.service, event.reason());
    if event.recovered {
        tracing::info!(watched, alert.id = %event.alert, reason, "watched service recovered");
    } else {
        tracing::error!(watched, alert.id = %event.alert, reason, "watched service in trouble");
    }
}
