//! The election's loop: the effects around the pure machine.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use voiceai_postgres::term::{self, Candidate, Issued, Standing};
use voiceai_postgres::{PgPool, Tenure, reserved, sqlx};
use voiceai_redis::{Redis, RedisError};
use voiceai_runtime::{Backoff, BootTime, Pulse, Vitals, boot_now, random_unit};

use crate::election::ElectionStatus;
use crate::lease::{Acquired, Confirmed, Held, Lease, Renewed};
use crate::machine::{Act, Event, Role, next};
use crate::metrics::Metrics;
use crate::mirror::{RedisTerm, TermMirror};
use crate::settings::{LeaderSettings, Timing};
use crate::stuck::{Verdict, Watched};

type Mirrors = Vec<Arc<dyn TermMirror>>;

/// What is done while a term is held: dropping it ends the tenure, on whatever way out.
struct Reign {
    tenure: Tenure,
    trusted_until: BootTime,
    /// Copies that could not be raised yet.
    late: Mirrors,
    /// The running question to PostgreSQL. Its own task: it must not be cancelled half-way, nor delay a renewal.
    question: Option<JoinHandle<Answer>>,
}

impl Drop for Reign {
    fn drop(&mut self) {
        self.tenure.end();
    }
}

struct Answer {
    standing: Result<Option<Standing>, sqlx::Error>,
    late: Mirrors,
}

/// A term that was issued and written into the lease.
struct Won {
    issued: Issued,
    trusted_until: BootTime,
    late: Mirrors,
}

pub(crate) struct Campaign {
    settings: LeaderSettings,
    timing: Timing,
    lease: Lease,
    pool: PgPool,
    /// The copy beside the lease, which the lease's own script raises.
    own_copy: Arc<dyn TermMirror>,
    mirrors: Mirrors,
    role: Role,
    reign: Option<Reign>,
    /// Candidacies in a row that got no term.
    defeats: u32,
    watched: Watched,
    /// Who led, or what stood in the way, when it was last logged.
    obstacle: Option<String>,
    metrics: Metrics,
    pulse: Pulse,
    tell: watch::Sender<Option<Tenure>>,
    report: watch::Sender<ElectionStatus>,
    stop: CancellationToken,
}

impl Campaign {
    #[expect(clippy::too_many_arguments, reason = "called once, by Election::start")]
    pub(crate) fn new(
        settings: LeaderSettings,
        redis: &Redis,
        pool: &PgPool,
        mirrors: Mirrors,
        vitals: &Vitals,
        tell: watch::Sender<Option<Tenure>>,
        report: watch::Sender<ElectionStatus>,
        stop: CancellationToken,
    ) -> Self {
        let timing = Timing::of(&settings);
        let lease = Lease::new(&settings, &timing, redis);
        Self {
            own_copy: Arc::new(RedisTerm::new(lease.redis().clone(), settings.term_key())),
            // Work that has taken every connection must not keep a term from being issued or checked.
            pool: reserved(pool, 2, timing.issue),
            metrics: Metrics::new(&settings.key),
            pulse: vitals.register("leader election", timing.turn_max()),
            role: Role::Follower,
            reign: None,
            defeats: 0,
            watched: Watched::default(),
            obstacle: None,
            settings,
            timing,
            lease,
            mirrors,
            tell,
            report,
            stop,
        }
    }

    pub(crate) async fn run(mut self) {
        while self.role != Role::Resigned {
            self.pulse.beat();
            let pause = if self.reign.is_some() { self.renew().await } else { self.follow().await };
            if self.role != Role::Resigned {
                self.rest(pause).await;
            }
        }
        self.pool.close().await;
    }

    /// Waits for the next turn; meanwhile listens for the order to stop and for PostgreSQL's answer.
    async fn rest(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        while self.role != Role::Resigned {
            let stop = self.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => self.apply(Event::Stop, "this process resigned").await,
                answer = answered(&mut self.reign) => self.judge(answer).await,
                () = sleep_until(until) => return,
            }
        }
    }

    /// One turn without a term: looks whether the lease is free. Returns how long to wait before the next.
    async fn follow(&mut self) -> Duration {
        let sent = boot_now();
        match self.lease.acquire().await {
            Ok(Acquired::Taken) => {
                self.watched.forget();
                self.obstacle = None;
                self.apply(Event::Taken, "holds the lease, asks for a term").await;
                self.run_for_term(self.timing.trusted_until(sent)).await
            }
            Ok(Acquired::Not(held)) => {
                self.apply(Event::NotTaken, &held.describe()).await;
                self.meet(&held).await;
                let left = match &held {
                    Held::Text(text) => text.left,
                    Held::Nothing | Held::OtherType(_) => None,
                };
                self.timing.poll(left, random_unit())
            }
            Err(error) => {
                self.apply(Event::NotTaken, &error.to_string()).await;
                self.once(error.to_string(), |election, why| {
                    tracing::warn!(election, error = why, "cannot ask for the lease");
                });
                self.timing.poll(None, random_unit())
            }
        }
    }

    /// From the lease to the term.
    async fn run_for_term(&mut self, lease_until: BootTime) -> Duration {
        match self.seek_term(lease_until).await {
            Ok(won) => {
                self.defeats = 0;
                self.apply(Event::Installed, "elected").await;
                self.lead(won);
                self.timing.heartbeat
            }
            Err((event, why)) => {
                let wait = self.after_defeat();
                if event != Event::Stop {
                    tracing::warn!(
                        election = self.settings.key,
                        reason = why,
                        retry_in_ms = wait.as_millis(),
                        "holds the lease but got no term; gives the lease back"
                    );
                }
                self.apply(event, &why).await;
                wait
            }
        }
    }

    /// Reads the copies, has the term issued, raises the copies, and writes the term into the lease if it is still ours.
    async fn seek_term(&self, lease_until: BootTime) -> Result<Won, (Event, String)> {
        let highest = self.highest_copy().await;
        let spare = lease_until.duration_since(boot_now()).saturating_sub(self.timing.call * 2);
        let issue = self.issue(highest);
        let issued = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err((Event::Stop, "this process resigned".into())),
            issued = timeout(spare.min(self.timing.issue), issue) => match issued {
                Ok(Ok(Ok(issued))) => issued,
                Ok(Ok(Err(error))) => return Err((Event::NoTerm, format!("PostgreSQL issued no term: {error}"))),
                Ok(Err(error)) => return Err((Event::NoTerm, format!("the question for a term failed: {error}"))),
                Err(_) => return Err((Event::NoTerm, "PostgreSQL issued no term while the lease was ours".into())),
            },
        };
        let number = issued.term.number;
        let late = raise(&self.mirrors, number, self.timing.call).await;
        let sent = boot_now();
        match self.lease.confirm(number).await {
            Ok(Confirmed::Ok { replaced }) => {
                if let Some(was) = replaced.filter(|was| !was.is_empty()) {
                    tracing::warn!(
                        key = self.settings.term_key(),
                        was,
                        term = number,
                        "the copy of the term was no number; replaced"
                    );
                }
                Ok(Won { issued, trusted_until: self.timing.trusted_until(sent), late })
            }
            Ok(Confirmed::Behind(copy)) => {
                Err((Event::NoTerm, format!("term {number} is behind the copy in Redis, which is {copy}")))
            }
            Ok(Confirmed::NotOurs(held)) => Err((Event::Displaced, held.describe())),
            Err(error) => Err((Event::Unsure, error.to_string())),
        }
    }

    async fn highest_copy(&self) -> i64 {
        let copies = self.mirrors.iter().chain(std::iter::once(&self.own_copy));
        let read = join_all(copies.map(|copy| async {
            match timeout(self.timing.call, copy.highest()).await {
                Ok(Ok(term)) => term,
                Ok(Err(error)) => {
                    tracing::warn!(copy = copy.name(), error = %error, "cannot read a copy of the term; goes on without it");
                    0
                }
                Err(_) => {
                    tracing::warn!(copy = copy.name(), "no answer from a copy of the term; goes on without it");
                    0
                }
            }
        }));
        read.await.into_iter().max().unwrap_or(0)
    }

    /// In a task of its own, which is left to its own limits when this process cannot wait any more: a term that is
    /// issued too late supersedes a newer leader's, who then notices and is elected again.
    fn issue(&self, highest: i64) -> JoinHandle<Result<Issued, sqlx::Error>> {
        let pool = self.pool.clone();
        let LeaderSettings { key, instance_id, host, .. } = self.settings.clone();
        tokio::spawn(async move {
            let candidate = Candidate {
                name: &key,
                service: &program_name(),
                holder: &instance_id,
                host: &host,
                pid: std::process::id(),
            };
            term::issue(&pool, &candidate, highest).await
        })
    }

    fn lead(&mut self, won: Won) {
        let Won { issued, trusted_until, late } = won;
        let election = &*self.settings.key;
        let term = issued.term.number;
        let instance = &*self.settings.instance_id;
        tracing::info!(election, term, instance, held = issued.held_reason.is_some(), "leader elected");
        if issued.regressed {
            tracing::error!(
                election,
                term,
                remedy = "find out what the restored database lacks, then `voiceai-scaler resume --all` or \
                          `voiceai-tasker release --restored --reason R`",
                "term regressed"
            );
        } else if let Some(reason) = &issued.held_reason {
            tracing::warn!(election, term, reason, "leader is held until a person releases it");
        }
        let tenure = Tenure::new(issued.term, trusted_until, issued.held_reason.is_some());
        self.metrics.elected(term);
        self.reign = Some(Reign { tenure: tenure.clone(), trusted_until, late, question: None });
        self.tell.send_replace(Some(tenure));
        self.ask();
        self.describe("elected");
    }

    /// One turn with a term. Returns how long to wait before the next.
    async fn renew(&mut self) -> Duration {
        let sent = boot_now();
        let Some(reign) = &self.reign else { return Duration::ZERO };
        if sent >= reign.trusted_until {
            self.apply(Event::Expired, "the lease was not renewed in time").await;
            return Duration::ZERO;
        }
        let reply = self.lease.renew().await;
        let took = boot_now().duration_since(sent);
        self.metrics.renewed(took, matches!(reply, Ok(Renewed::Ok)));
        match reply {
            Ok(Renewed::Ok) => {
                if let Some(reign) = &mut self.reign {
                    reign.trusted_until = self.timing.trusted_until(sent);
                    reign.tenure.extend(reign.trusted_until);
                }
                self.apply(Event::Renewed, "elected").await;
                self.ask();
                self.timing.heartbeat.saturating_sub(took)
            }
            Ok(Renewed::NotOurs(held)) => {
                self.apply(Event::Displaced, &held.describe()).await;
                Duration::ZERO
            }
            Err(error) => {
                self.unsure(&error).await;
                let left = self
                    .reign
                    .as_ref()
                    .map_or(Duration::ZERO, |r| r.trusted_until.duration_since(boot_now()));
                self.timing.retry.min(left)
            }
        }
    }

    async fn unsure(&mut self, error: &RedisError) {
        let election = &*self.settings.key;
        let term = self.reign.as_ref().map(|r| r.tenure.term().number);
        tracing::warn!(election, term, error = %error, "renewal failed: no new effects until one succeeds");
        self.apply(Event::Unsure, &format!("renewal failed: {error}")).await;
    }

    /// Asks PostgreSQL, beside the renewals, whether the term is still the newest, and raises what is late.
    fn ask(&mut self) {
        let Some(reign) = &mut self.reign else { return };
        if reign.question.is_some() {
            return;
        }
        let (pool, name, limit) = (self.pool.clone(), self.settings.key.clone(), self.timing.call);
        let (term, late) = (reign.tenure.term().number, std::mem::take(&mut reign.late));
        reign.question = Some(tokio::spawn(async move {
            let late = raise(&late, term, limit).await;
            Answer { standing: term::standing(&pool, &name).await, late }
        }));
    }

    async fn judge(&mut self, answer: Answer) {
        let Some(reign) = &mut self.reign else { return };
        reign.late = answer.late;
        let election = &*self.settings.key;
        let ours = reign.tenure.term().number;
        let why = match answer.standing {
            Ok(Some(standing)) if standing.term == ours => {
                if reign.tenure.is_held() && standing.held_reason.is_none() {
                    reign.tenure.release();
                    tracing::info!(election, term = ours, "leader released");
                    self.tell.send_modify(|_| ());
                    self.describe("elected, released");
                }
                return;
            }
            Ok(Some(standing)) if standing.term > ours => {
                format!("PostgreSQL has issued term {} since", standing.term)
            }
            Ok(Some(standing)) => {
                format!("PostgreSQL knows only term {}: it was restored from a backup", standing.term)
            }
            Ok(None) => "PostgreSQL knows no term of this election: it was restored or emptied".into(),
            Err(error) => {
                tracing::warn!(election, term = ours, error = %error, "cannot ask PostgreSQL for the newest term; keeps the lease");
                return;
            }
        };
        self.apply(Event::Superseded, &why).await;
    }

    /// Moves the machine and does what it says, but for taking and winning a candidacy, which the caller goes on with.
    async fn apply(&mut self, event: Event, why: &str) {
        let (role, act) = next(self.role, event);
        self.role = role;
        match act {
            Act::Nothing | Act::SeekTerm | Act::Lead | Act::Extend => {}
            Act::Suspend => {
                if let Some(reign) = &self.reign {
                    reign.tenure.suspend();
                }
                self.metrics.acts(false);
                self.tell.send_modify(|_| ());
            }
            Act::Resume => {
                self.metrics.acts(true);
                self.tell.send_modify(|_| ());
                let term = self.reign.as_ref().map(|r| r.tenure.term().number);
                tracing::info!(election = self.settings.key, term, "renewed: the tenure goes on");
            }
            Act::Withdraw => self.release().await,
            Act::Lose => self.end_reign(why),
            Act::Resign => {
                self.end_reign(why);
                self.release().await;
            }
        }
        self.describe(why);
    }

    /// First the tenure ends, then everybody is told.
    fn end_reign(&mut self, why: &str) {
        let Some(reign) = self.reign.take() else { return };
        let term = reign.tenure.term().number;
        drop(reign);
        self.tell.send_replace(None);
        self.metrics.lost();
        let election = &*self.settings.key;
        if self.role == Role::Resigned {
            tracing::info!(election, term, reason = why, "leader lost");
        } else {
            tracing::warn!(election, term, reason = why, "leader lost");
        }
    }

    async fn release(&self) {
        if let Err(error) = self.lease.release().await {
            tracing::warn!(election = self.settings.key, error = %error, "the lease was not given back; it runs out by itself");
        }
    }

    /// Deals with what stands in the leader key instead of our lease.
    async fn meet(&mut self, held: &Held) {
        let key = self.settings.key.clone();
        let text = match held {
            Held::Nothing => return,
            Held::OtherType(kind) => {
                self.watched.forget();
                // Somebody's data: never removed by us.
                tracing::error!(
                    election = key,
                    kind,
                    remedy = format!(
                        "if nothing else uses `{key}`, remove it with `DEL {key}`; else choose another leader key"
                    ),
                    "nobody can lead: the leader key holds another type of value"
                );
                return;
            }
            Held::Text(text) => text,
        };
        self.once(held.describe(), |election, who| tracing::info!(election, leader = who, "follows"));
        match self.watched.look(text, self.timing.ttl, boot_now()) {
            Verdict::Wait { odd: false } => {}
            Verdict::Wait { odd: true } => tracing::warn!(
                election = key,
                remaining_ms = text.left.map(|left| left.as_millis()),
                remedy = format!("if nobody leads, it is mended by itself; `DEL {key}` is quicker"),
                "the lease would not run out in time: it has no time limit or one longer than its holder gives"
            ),
            Verdict::Mend { not_stuck } => {
                self.watched.forget();
                let limit = self.timing.heartbeat;
                match self.lease.mend(text, not_stuck, limit).await {
                    Ok(true) => tracing::warn!(
                        election = key,
                        holder = held.describe(),
                        runs_out_in_ms = limit.as_millis(),
                        "a stuck lease was given a time limit: nobody had renewed it for as long as a lease lasts"
                    ),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(election = key, error = %error, "cannot mend a stuck lease"),
                }
            }
        }
    }

    /// Logs `obstacle` when it is another one than the last.
    fn once(&mut self, obstacle: String, log: impl FnOnce(&str, &str)) {
        if self.obstacle.as_ref() != Some(&obstacle) {
            log(&self.settings.key, &obstacle);
            self.obstacle = Some(obstacle);
        }
    }

    fn after_defeat(&mut self) -> Duration {
        let backoff = Backoff {
            base: self.timing.heartbeat / 2,
            factor: 2.0,
            cap: self.timing.heartbeat.max(Duration::from_secs(5)),
            jitter: 0.2,
        };
        let wait = backoff.delay(self.defeats, random_unit());
        self.defeats = self.defeats.saturating_add(1);
        wait
    }

    fn describe(&self, why: &str) {
        let tenure = self.reign.as_ref().map(|r| &r.tenure);
        let status = ElectionStatus {
            role: self.role,
            term: tenure.map(|t| t.term().number),
            held: tenure.is_some_and(Tenure::is_held),
            reason: why.to_owned(),
        };
        self.report.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

/// PostgreSQL's answer, once there is one; never, while none is awaited.
async fn answered(reign: &mut Option<Reign>) -> Answer {
    let Some(Reign { question, .. }) = reign else { return std::future::pending().await };
    let Some(task) = question else { return std::future::pending().await };
    let answer = task.await;
    *question = None;
    answer.unwrap_or_else(|error| Answer {
        standing: Err(sqlx::Error::Io(std::io::Error::other(error))),
        late: Vec::new(),
    })
}

/// Raises all copies at once; returns those that could not be raised.
async fn raise(mirrors: &Mirrors, term: i64, limit: Duration) -> Mirrors {
    let raised = join_all(mirrors.iter().map(|copy| async move {
        let why = match timeout(limit, copy.raise(term)).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(
            copy = copy.name(),
            term,
            error = why,
            "cannot raise a copy of the term; tried again with each heartbeat"
        );
        Some(Arc::clone(copy))
    }));
    raised.await.into_iter().flatten().collect()
}

/// The running program's name, which is the service's.
fn program_name() -> String {
    let path = std::env::current_exe().ok();
    path.and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "voiceai".into())
}
