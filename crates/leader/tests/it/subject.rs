//! The process under test: takes part in an election and does fenced effects as fast as it may.

use std::time::Duration;

use voiceai_leader::{Election, LeaderSettings, RedisTerm, Tenure};
use voiceai_postgres::{PgPool, PostgresSettings, sqlx, term};
use voiceai_redis::{Redis, RedisSettings, Script};
use voiceai_runtime::{Secret, Shutdown, Vitals};

/// Where SQL effects go. A row knows whether its term was the newest when it was committed: the fence holds the leader
/// row until then, so the trigger sees what the commit will see.
pub(crate) const EFFECTS: &str = "
    CREATE TABLE effects (id bigserial, term bigint, holder text, stale boolean, at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE refusals (term bigint, holder text, effect text);
    CREATE FUNCTION mark_stale() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        NEW.stale := NEW.term <> (SELECT term FROM ops.leader_terms WHERE name = TG_ARGV[0]);
        RETURN NEW;
    END $$;
    CREATE TRIGGER mark BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION mark_stale('voiceai:test:leader');";

pub(crate) const KEY: &str = "voiceai:test:leader";
/// Redis's own log of effects, and the copy of the term that fences it.
pub(crate) const REDIS_LOG: &str = "{effects}:log";
pub(crate) const REDIS_TERM: &str = "{effects}:term";

const INSERT: &str = "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE) \
                      INSERT INTO effects (term, holder) SELECT $2, $3 FROM leader";
const APPEND: &str = "
    local newest = tonumber(redis.call('GET', KEYS[2]) or '0')
    if newest > tonumber(ARGV[1]) then return 0 end
    redis.call('SET', KEYS[2], ARGV[1])
    redis.call('RPUSH', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
    return 1";

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn millis(name: &str) -> Duration {
    Duration::from_millis(var(name).parse().expect(name))
}

#[test]
#[ignore = "the other tests run it as a process"]
fn run() {
    if var("SUBJECT").is_empty() {
        return;
    }
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(subject());
}

struct Subject {
    holder: String,
    redis: Redis,
    pool: PgPool,
    append: Script,
    /// Between the check and the effect: a pause here makes the effect stale.
    preparation: Duration,
    stop_in_transaction: bool,
}

async fn subject() {
    let shutdown = Shutdown::on_signals().unwrap();
    let redis = Redis::connect(&RedisSettings::from_url(var("REDIS_URL")).unwrap()).await.unwrap();
    let ttl = millis("TTL_MS");
    let pool = voiceai_postgres::connect(&PostgresSettings {
        max_connections: 2,
        idle_in_transaction_timeout: ttl / 2,
        ..PostgresSettings::new(Secret::new(var("DATABASE_URL")))
    })
    .await
    .unwrap();
    let settings = LeaderSettings {
        key: KEY.into(),
        heartbeat: millis("HEARTBEAT_MS"),
        lock_ttl: ttl,
        instance_id: var("SUBJECT"),
        host: "test".into(),
    };
    settings.validate().unwrap();
    let copy = RedisTerm::new(redis.clone(), REDIS_TERM);
    let election = Election::start(
        settings,
        redis.clone(),
        pool.clone(),
        vec![std::sync::Arc::new(copy)],
        &Vitals::new(),
    );
    println!("ready");
    let subject = Subject {
        holder: var("SUBJECT"),
        redis,
        pool,
        append: Script::new("append", APPEND),
        preparation: Duration::from_millis(5),
        stop_in_transaction: !var("STOP_IN_TRANSACTION").is_empty(),
    };
    tokio::select! {
        () = subject.work(&election) => {}
        () = shutdown.stopping().cancelled_owned() => {}
    }
    election.resign().await;
    println!("resigned");
}

impl Subject {
    async fn work(&self, election: &Election) {
        let mut watch = election.watch();
        let mut done = 0;
        loop {
            let Ok(tenure) = watch.wait_for(Option::is_some).await.map(|t| t.clone()) else { return };
            let Some(tenure) = tenure.filter(|t| t.is_trusted() && !t.is_held()) else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            tokio::time::sleep(self.preparation).await;
            done += 1;
            let sql = if self.stop_in_transaction && done == 5 {
                self.stop_inside(&tenure).await
            } else {
                self.insert(&tenure).await
            };
            let redis = self.append(&tenure).await;
            for (effect, outcome) in [("sql", sql.map_err(|e| e.to_string())), ("redis", redis)] {
                match outcome {
                    Ok(true) => {}
                    Ok(false) => self.refused(&tenure, effect).await,
                    Err(error) => {
                        println!("{effect} effect failed: {error}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        }
    }

    async fn insert(&self, tenure: &Tenure) -> Result<bool, sqlx::Error> {
        let query = sqlx::query(INSERT).bind(KEY).bind(tenure.term().number).bind(&self.holder);
        Ok(query.execute(&self.pool).await?.rows_affected() == 1)
    }

    /// The fenced statement inside an open transaction, in which the process stops itself.
    async fn stop_inside(&self, tenure: &Tenure) -> Result<bool, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        let query = sqlx::query(INSERT).bind(KEY).bind(tenure.term().number).bind(&self.holder);
        let done = query.execute(&mut *transaction).await?;
        println!("stops inside a transaction");
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).unwrap();
        let commit = transaction.commit().await;
        println!("commit after the stop: {}", if commit.is_ok() { "done" } else { "failed" });
        commit.map(|()| done.rows_affected() == 1)
    }

    async fn append(&self, tenure: &Tenure) -> Result<bool, String> {
        let keys = vec![REDIS_LOG.into(), REDIS_TERM.into()];
        let args = vec![tenure.term().number.into(), self.holder.as_str().into()];
        let done: i64 = self.redis.eval(&self.append, keys, args).await.map_err(|e| e.to_string())?;
        Ok(done == 1)
    }

    async fn refused(&self, tenure: &Tenure, effect: &'static str) {
        term::refused(tenure.term(), effect);
        let query = sqlx::query("INSERT INTO refusals VALUES ($1, $2, $3)");
        let query = query.bind(tenure.term().number).bind(&self.holder).bind(effect);
        if let Err(error) = query.execute(&self.pool).await {
            println!("a refusal was not written down: {error}");
        }
    }
}
