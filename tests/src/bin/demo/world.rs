//! What the demo looks at: rows, leases, processes. It never asks a service what it believes where it can see for itself.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{PgPool, Row};
use voiceai_e2e::{Callers, Platform, Stores};
use voiceai_redis::{Redis, RedisSettings};

/// One making or removal of a server.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) state: String,
    pub(crate) server: String,
    pub(crate) finished: bool,
}

/// A leader as its lease names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) instance: String,
    pub(crate) term: i64,
}

/// The eyes of the demo.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) pool: PgPool,
    pub(crate) redis: Redis,
    pub(crate) callers: Callers,
}

impl World {
    pub(crate) async fn look(platform: &Platform) -> Result<Self> {
        let stores = platform.stores();
        Ok(Self {
            pool: platform.pool().await?,
            redis: Redis::connect(&RedisSettings::from_url(stores.redis_url.clone())?).await?,
            callers: Callers::new(&stores.dispatcher_url, "dispatcher:entry::").await?,
        })
    }

    /// Who leads, by the lease in Redis.
    pub(crate) async fn leader(&self, key: &str) -> Result<Leader> {
        let text = self.redis.get(key).await?.with_context(|| format!("nobody holds {key}"))?;
        let lease: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{key} holds {text:?}"))?;
        let instance = lease["instanceId"].as_str().context("the lease names no instanceId")?.to_owned();
        let term = lease["term"].as_i64().filter(|term| *term > 0).context("no term was issued yet")?;
        Ok(Leader { instance, term })
    }

    /// When the server last said that it is alive, if its key is there.
    pub(crate) async fn heartbeat(&self, server: &str) -> Result<Option<i64>> {
        let Some(text) = self.redis.get(format!("voiceai:heartbeat:{server}")).await? else {
            return Ok(None);
        };
        let beat: serde_json::Value = serde_json::from_str(&text)?;
        Ok(beat["atMs"].as_i64())
    }

    pub(crate) async fn operations(&self) -> Result<Vec<Operation>> {
        let rows = sqlx::query(
            "SELECT o.id::text, o.kind, o.state, s.name, o.finished_at IS NOT NULL \
             FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id ORDER BY o.created_at",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Operation {
                    id: row.try_get(0)?,
                    kind: row.try_get(1)?,
                    state: row.try_get(2)?,
                    server: row.try_get(3)?,
                    finished: row.try_get(4)?,
                })
            })
            .collect()
    }

    /// The states an operation went through, in order, with the terms of the leaders that wrote them.
    pub(crate) async fn steps(&self, operation: &str) -> Result<Vec<(String, Option<i64>)>> {
        let rows = sqlx::query(
            "SELECT to_state, term FROM ops.operation_steps WHERE operation_id = $1::uuid ORDER BY id",
        )
        .bind(operation)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Servers in the table that are not gone, with their status.
    pub(crate) async fn servers(&self) -> Result<BTreeMap<String, String>> {
        let rows = sqlx::query("SELECT name, status FROM ops.servers WHERE status <> 'gone'")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// The names of servers whose process runs on this machine.
    pub(crate) fn processes(&self, platform: &Platform) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, pid) in server_processes(&platform.provider_state())? {
            if kill(Pid::from_raw(pid), None).is_ok() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Fails unless exactly `count` servers are in the table as active, run as processes and take calls by the dispatcher.
    pub(crate) async fn settled(&self, platform: &Platform, count: usize) -> Result<Vec<String>> {
        let table = self.servers().await?;
        ensure!(
            table.len() == count && table.values().all(|status| status == "active"),
            "the table has {table:?}"
        );
        let processes = self.processes(platform)?;
        ensure!(processes.len() == count, "these servers run: {processes:?}");
        let records = self.callers.destinations().await?;
        let taking: Vec<_> = records.iter().filter(|record| record.takes_calls()).collect();
        ensure!(records.len() == count && taking.len() == count, "the dispatcher set holds {records:?}");
        Ok(table.into_keys().collect())
    }
}

/// The local provider's servers by their state files: name and process.
fn server_processes(state: &Path) -> Result<Vec<(String, i32)>> {
    let Ok(folder) = std::fs::read_dir(state) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in folder {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        // Between the listing and the reading a server may have ended.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let server: serde_json::Value = serde_json::from_str(&text)?;
        if let (Some(name), Some(pid)) = (server["name"].as_str(), server["pid"].as_i64()) {
            found.push((name.to_owned(), i32::try_from(pid)?));
        }
    }
    Ok(found)
}

/// Ends every simulated server: they are processes of their own and outlive the scaler by design.
pub(crate) fn end_servers(state: &Path) {
    for (_, pid) in server_processes(state).unwrap_or_default() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The stores of the private stack, from the `export` lines of `make stack`.
pub(crate) fn stores_from_environment() -> Result<Stores> {
    let of = |name: &'static str| {
        std::env::var(name).with_context(|| format!("{name} is not set; run `make demo`"))
    };
    let redis_url = of("REDIS_URL")?;
    let mut dispatcher_url = redis_url.clone();
    let authority_end = dispatcher_url.find("://").map_or(0, |at| at + 3);
    let path =
        dispatcher_url[authority_end..].find('/').map_or(dispatcher_url.len(), |at| authority_end + at);
    dispatcher_url.replace_range(path.., "/1");
    Ok(Stores {
        redis_url,
        dispatcher_url,
        database_url: of("DATABASE_URL")?,
        s3: [
            ("S3_ENDPOINT", of("S3_ENDPOINT")?),
            ("S3_ACCESS_KEY", of("S3_ACCESS_KEY")?),
            ("S3_SECRET_KEY", of("S3_SECRET_KEY")?),
            ("S3_BUCKET", of("S3_BUCKET")?),
        ],
    })
}
