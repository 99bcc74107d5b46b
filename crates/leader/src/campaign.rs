//! The election's loop: the effects around the pure machine.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use voiceai_postgres::term::{self, Standing};
use voiceai_postgres::{PgPool, Tenure, reserved, sqlx};
use voiceai_redis::{Redis, RedisError};
use voiceai_runtime::{Backoff, BootTime, Pulse, Vitals, boot_now, random_unit};

use crate::candidacy::{Candidacy, Mirrors, Won, raise};
use crate::election::ElectionStatus;
use crate::lease::{Acquired, Held, Lease, Renewed};
use crate::machine::{Act, Event, Role, next};
use crate::metrics::Metrics;
use crate::obstacles::Obstacles;
use crate::settings::{LeaderSettings, Timing};

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

pub(crate) struct Campaign {
    settings: LeaderSettings,
    timing: Timing,
    lease: Lease,
    pool: PgPool,
    candidacy: Candidacy,
    role: Role,
    reign: Option<Reign>,
    /// Candidacies in a row that got no term.
    defeats: u32,
    obstacles: Obstacles,
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
        // Work that has taken every connection must not keep a term from being issued or checked.
        let pool = reserved(pool, 2, timing.issue);
        let copies = lease.redis().clone();
        Self {
            candidacy: Candidacy::new(settings.clone(), timing, pool.clone(), copies, mirrors),
            obstacles: Obstacles::new(&settings.key, timing),
            pool,
            metrics: Metrics::new(&settings.key),
            pulse: vitals.register("leader election", timing.turn_max()),
            role: Role::Follower,
            reign: None,
            defeats: 0,
            settings,
            timing,
            lease,
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
                self.obstacles.clear();
                self.apply(Event::Taken, "holds the lease, asks for a term").await;
                self.run_for_term(self.timing.trusted_until(sent)).await
            }
            Ok(Acquired::Not(held)) => {
                self.apply(Event::NotTaken, &held.describe()).await;
                self.obstacles.meet(&self.lease, &held).await;
                let left = match &held {
                    Held::Text(text) => text.left,
                    Held::Nothing | Held::OtherType(_) => None,
                };
                self.timing.poll(left, random_unit())
            }
            Err(error) => {
                self.apply(Event::NotTaken, &error.to_string()).await;
                self.obstacles.unanswered(&error);
                self.timing.poll(None, random_unit())
            }
        }
    }

    /// From the lease to the term.
    async fn run_for_term(&mut self, lease_until: BootTime) -> Duration {
        match self.candidacy.seek_term(&self.lease, lease_until, &self.stop).await {
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
