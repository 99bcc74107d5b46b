//! Several processes of one election, and the judge of their effects.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use voiceai_leader::LeaderRecord;
use voiceai_postgres::{PgPool, sqlx};
use voiceai_redis::{Redis, RedisSettings};
use voiceai_testkit::{Process, Program, wait_for};

use crate::subject::{EFFECTS, KEY, REDIS_LOG};

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);
pub(crate) const TTL: Duration = Duration::from_secs(1);
/// The bound on a takeover: the lease, one poll, and a second for the machine.
pub(crate) const TAKEOVER: Duration = Duration::from_millis(1_000 + 250 + 1_000);
/// For what has no bound of its own.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Who did an effect, and in which term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Act {
    pub(crate) term: i64,
    pub(crate) holder: String,
}

pub(crate) struct Fleet {
    pub(crate) pool: PgPool,
    database_url: String,
    redis_url: String,
    members: BTreeMap<String, Process>,
    next: u32,
}

impl Fleet {
    /// On the shared servers, with `members` processes.
    pub(crate) async fn start(members: usize) -> Self {
        let redis = voiceai_testkit::redis().await;
        let mut fleet = Self::on(&redis.url).await;
        fleet.join_ready(members).await;
        fleet
    }

    /// On a Redis of the test's own; nobody has joined yet.
    pub(crate) async fn on(redis_url: &str) -> Self {
        let database = voiceai_testkit::database().await;
        Self::between(redis_url, &database.url).await
    }

    /// On servers of the test's own; the database has been migrated.
    pub(crate) async fn between(redis_url: &str, database_url: &str) -> Self {
        let pool = PgPool::connect(database_url).await.unwrap();
        sqlx::raw_sql(EFFECTS).execute(&pool).await.unwrap();
        Self {
            pool,
            database_url: database_url.to_owned(),
            redis_url: redis_url.to_owned(),
            members: BTreeMap::new(),
            next: 0,
        }
    }

    /// Several more processes; returns once all take part.
    pub(crate) async fn join_ready(&mut self, count: usize) {
        let names: Vec<String> = (0..count).map(|_| self.join()).collect();
        for name in names {
            self.member(&name).wait_for_line(SOON * 3, "ready").await;
        }
    }

    /// One more process.
    pub(crate) fn join(&mut self) -> String {
        self.join_as(|program| program)
    }

    pub(crate) fn join_as(&mut self, change: impl FnOnce(Program) -> Program) -> String {
        self.next += 1;
        let name = format!("member-{}", self.next);
        let program = Program::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "subject::run", "--nocapture"])
            .env("SUBJECT", &name)
            .env("REDIS_URL", &self.redis_url)
            .env("DATABASE_URL", &self.database_url)
            .env("HEARTBEAT_MS", HEARTBEAT.as_millis().to_string())
            .env("TTL_MS", TTL.as_millis().to_string());
        self.members.insert(name.clone(), change(program).start());
        name
    }

    pub(crate) fn member(&self, name: &str) -> &Process {
        &self.members[name]
    }

    pub(crate) fn leave(&mut self, name: &str) {
        self.members.remove(name);
    }

    /// The newest SQL effect, or `term` 0.
    pub(crate) async fn newest(&self) -> Act {
        self.look().await.unwrap().unwrap_or(Act { term: 0, holder: String::new() })
    }

    async fn look(&self) -> Result<Option<Act>, sqlx::Error> {
        let row: Option<(i64, String)> =
            sqlx::query_as("SELECT term, holder FROM effects ORDER BY id DESC LIMIT 1")
                .fetch_optional(&self.pool)
                .await?;
        Ok(row.map(|(term, holder)| Act { term, holder }))
    }

    /// Waits for an effect of a higher term than `above`.
    pub(crate) async fn effect_above(&self, above: i64, within: Duration) -> Act {
        wait_for(within, format!("an effect in a term above {above}"), async || match self.look().await {
            Ok(Some(act)) if act.term > above => Ok(act),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// As [`Self::effect_above`], and how long it took since `from`.
    pub(crate) async fn takeover(&self, above: i64, from: Instant, within: Duration) -> (Act, Duration) {
        let act = self.effect_above(above, within).await;
        (act, from.elapsed())
    }

    pub(crate) async fn effects(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn refusals(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM refusals").fetch_one(&self.pool).await.unwrap()
    }

    /// What the leader key says.
    pub(crate) async fn record(&self, redis: &Redis) -> Option<LeaderRecord> {
        voiceai_leader::current(redis, KEY).await.unwrap()
    }

    /// The invariants: terms never fall, each has one holder, and nothing stale was committed. `redis`: whether Redis's
    /// log was kept throughout.
    pub(crate) async fn judge(&self, redis: bool) -> Verdict {
        let rows: Vec<(i64, String, bool)> =
            sqlx::query_as("SELECT term, holder, stale FROM effects ORDER BY id")
                .fetch_all(&self.pool)
                .await
                .unwrap();
        let stale = rows.iter().filter(|(_, _, stale)| *stale).count();
        assert_eq!(stale, 0, "stale effects were committed");
        let mut holders = BTreeMap::new();
        let sql = rows.into_iter().map(|(term, holder, _)| Act { term, holder }).collect();
        let effects = check_order("SQL", sql, &mut holders);
        let mut redis_effects = 0;
        if redis {
            let client = Redis::connect(&RedisSettings::from_url(&self.redis_url).unwrap()).await.unwrap();
            let lines: Vec<String> = client.command("LRANGE", vec![REDIS_LOG, "0", "-1"]).await.unwrap();
            let log = lines.iter().map(|line| {
                let (term, holder) = line.split_once(' ').unwrap();
                Act { term: term.parse().unwrap(), holder: holder.to_owned() }
            });
            redis_effects = check_order("Redis", log.collect(), &mut holders);
        }
        Verdict { effects: effects + redis_effects, terms: holders.len(), refusals: self.refusals().await }
    }
}

#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) effects: usize,
    pub(crate) terms: usize,
    pub(crate) refusals: i64,
}

fn check_order(store: &str, log: Vec<Act>, holders: &mut BTreeMap<i64, String>) -> usize {
    let mut before = 0;
    let count = log.len();
    for Act { term, holder } in log {
        assert!(term >= before, "{store}: an effect of term {term} after one of term {before}");
        before = term;
        let first = holders.entry(term).or_insert_with(|| holder.clone());
        assert_eq!(*first, holder, "{store}: two holders of term {term}");
    }
    count
}

/// Half of the values are at most the first figure, all at most the second, ms.
pub(crate) fn p50_max(mut spans: Vec<Duration>) -> (u128, u128) {
    spans.sort_unstable();
    let at = |i: usize| spans.get(i).map_or(0, Duration::as_millis);
    (at(spans.len() / 2), at(spans.len().saturating_sub(1)))
}
