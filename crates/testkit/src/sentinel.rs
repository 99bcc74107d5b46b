//! One primary, two replicas and three Sentinels.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::ports::Port;
use crate::process::{Process, Program};
use crate::redis_server::{RedisOptions, RedisServer, redis_cli};
use crate::wait::{wait_for, wait_until};

const READY_WITHIN: Duration = Duration::from_secs(60);

/// How a Sentinel group is set up.
#[derive(Debug, Clone)]
pub struct SentinelOptions {
    /// After how long without an answer a Sentinel takes the primary for down. Default 1 s.
    pub down_after: Duration,
    /// `min-replicas-to-write` of every server; 0, the default, lets a primary without replicas go on writing.
    pub min_replicas_to_write: u32,
    /// A password for the default user, of the servers and of the Sentinels.
    pub requirepass: Option<&'static str>,
}

impl Default for SentinelOptions {
    fn default() -> Self {
        Self { down_after: Duration::from_secs(1), min_replicas_to_write: 0, requirepass: None }
    }
}

/// A Redis that fails over: a primary with two replicas, watched by three Sentinels under the name `mymaster`.
#[derive(Debug)]
pub struct Sentinel {
    servers: Vec<RedisServer>,
    watchers: Vec<Watcher>,
    requirepass: Option<&'static str>,
    /// Index of the server that was primary when last asked.
    first: usize,
}

#[derive(Debug)]
struct Watcher {
    port: Port,
    process: Process,
    /// Sentinel rewrites its configuration here.
    _directory: TempDir,
}

impl Sentinel {
    /// The name under which the group is watched.
    pub const NAME: &'static str = "mymaster";

    /// Starts the six servers and waits until a failover would succeed.
    pub async fn start() -> Self {
        Self::start_with(SentinelOptions::default()).await
    }

    /// The same with options.
    pub async fn start_with(options: SentinelOptions) -> Self {
        let mut extra: Vec<(String, String)> = [
            ("repl-diskless-sync-delay", "0"),
            ("repl-ping-replica-period", "1"),
            ("repl-timeout", "5"),
            ("min-replicas-max-lag", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let redis = |extra: &[(String, String)]| RedisOptions {
            requirepass: options.requirepass,
            extra: extra.to_vec(),
            ..RedisOptions::default()
        };
        let primary = RedisServer::start(redis(&extra)).await;
        extra.push(("replicaof".to_owned(), format!("127.0.0.1 {}", primary.port())));
        let servers =
            vec![primary, RedisServer::start(redis(&extra)).await, RedisServer::start(redis(&extra)).await];
        wait_until(READY_WITHIN, "two replicas are in step", async || {
            servers[0].cli(&["INFO", "replication"]).await.matches("state=online").count() == 2
        })
        .await;
        for server in &servers {
            // Only now: a replica of a primary that refuses writes could not have been set up.
            server
                .cli(&["CONFIG", "SET", "min-replicas-to-write", &options.min_replicas_to_write.to_string()])
                .await;
        }
        let mut watchers = Vec::new();
        for _ in 0..3 {
            watchers.push(watch(servers[0].port(), &options));
        }
        let group = Self { servers, watchers, requirepass: options.requirepass, first: 0 };
        wait_for(READY_WITHIN, "the Sentinels agree", async || {
            for watcher in &group.watchers {
                let answer = group.sentinel_cli(watcher, &["SENTINEL", "CKQUORUM", Self::NAME]).await;
                let known = group.sentinel_cli(watcher, &["SENTINEL", "REPLICAS", Self::NAME]).await;
                // Without replicas that it knows, a Sentinel has nothing to promote.
                let replicas = known.lines().filter(|line| *line == "runid").count();
                if !answer.starts_with("OK 3 usable") || replicas != 2 {
                    return Err(format!("{answer}; {replicas} replicas known"));
                }
            }
            Ok(())
        })
        .await;
        group
    }

    /// `redis-sentinel://…`: the Sentinels' addresses and the name, in the form that fred reads.
    #[must_use]
    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.sentinel_ports();
        let password = self.requirepass.map(|password| format!(":{password}@")).unwrap_or_default();
        let sentinel_password =
            self.requirepass.map(|password| format!("&sentinelPassword={password}")).unwrap_or_default();
        format!(
            "redis-sentinel://{password}127.0.0.1:{}/0?sentinelServiceName={}&node=127.0.0.1:{}&node=127.0.0.1:{}{sentinel_password}",
            ports[0],
            Self::NAME,
            ports[1],
            ports[2]
        )
    }

    /// The Sentinels' ports.
    #[must_use]
    pub fn sentinel_ports(&self) -> Vec<u16> {
        self.watchers.iter().map(|watcher| watcher.port.number()).collect()
    }

    /// The servers, the first primary first.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The primary's port as the Sentinels have it.
    pub async fn primary_port(&self) -> u16 {
        wait_for(READY_WITHIN, "a Sentinel names the primary", async || {
            let answer = self
                .sentinel_cli(&self.watchers[0], &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::NAME])
                .await;
            answer.lines().nth(1).and_then(|port| port.parse().ok()).ok_or(answer)
        })
        .await
    }

    /// The server that was primary at the start, or after the last [`Self::wait_for_failover`].
    #[must_use]
    pub fn primary(&self) -> &RedisServer {
        &self.servers[self.first]
    }

    /// The primary, to be killed, paused or stopped.
    #[must_use]
    pub fn primary_mut(&mut self) -> &mut RedisServer {
        &mut self.servers[self.first]
    }

    /// Cuts the replicas off: what is written to the primary from now on is lost at its failover. The replicas know the
    /// primary's data up to here, so a Sentinel can still promote one of them.
    pub async fn cut_replication(&self) {
        for (index, replica) in self.servers.iter().enumerate() {
            if index != self.first {
                // A wrong password fails the link and leaves the role; a firewall would need root and touch the machine.
                replica.cli(&["CONFIG", "SET", "masterauth", "cut off"]).await;
                replica.cli(&["CONFIG", "SET", "masteruser", "nobody"]).await;
            }
        }
        let primary = self.primary();
        wait_until(READY_WITHIN, "no replica follows the primary", async || {
            // Ends the links that were made with the right password.
            primary.cli(&["CLIENT", "KILL", "TYPE", "replica"]).await;
            primary.cli(&["INFO", "replication"]).await.contains("connected_slaves:0")
        })
        .await;
    }

    /// Undoes [`Self::cut_replication`].
    pub async fn restore_replication(&self) {
        for server in &self.servers {
            if server.process().is_some() {
                server.cli(&["CONFIG", "SET", "masteruser", ""]).await;
                server.cli(&["CONFIG", "SET", "masterauth", self.requirepass.unwrap_or("")]).await;
            }
        }
    }

    /// SIGKILL to the primary.
    pub async fn kill_primary(&mut self) {
        let first = self.first;
        self.servers[first].kill9().await;
    }

    /// A planned failover (`SENTINEL FAILOVER`), as at maintenance.
    pub async fn failover(&self) {
        let answer = self.sentinel_cli(&self.watchers[0], &["SENTINEL", "FAILOVER", Self::NAME]).await;
        assert_eq!(answer, "OK", "SENTINEL FAILOVER was refused");
    }

    /// Waits until every Sentinel names another primary and it takes writes; afterwards [`Self::primary`] is that one.
    pub async fn wait_for_failover(&mut self, within: Duration) {
        let old = self.primary().port();
        let new = wait_for(within, "another primary takes over", async || {
            let mut ports = Vec::new();
            for watcher in &self.watchers {
                let answer =
                    self.sentinel_cli(watcher, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::NAME]).await;
                ports.push(answer.lines().nth(1).unwrap_or_default().to_owned());
            }
            let new = self
                .servers
                .iter()
                .position(|server| ports.iter().all(|port| *port == server.port().to_string()));
            let Some(new) = new.filter(|new| self.servers[*new].port() != old) else {
                return Err(format!("the Sentinels name {ports:?}, the old primary is {old}"));
            };
            let role = self.servers[new].cli(&["ROLE"]).await;
            if role.starts_with("master") { Ok(new) } else { Err(format!("its role is {role}")) }
        })
        .await;
        self.first = new;
    }

    /// Ends one Sentinel, to take away the majority.
    pub async fn kill_sentinel(&mut self, index: usize) {
        let watcher = &self.watchers[index];
        watcher.process.signal(Signal::SIGKILL);
        watcher.process.wait_exit(Duration::from_secs(10)).await;
    }

    async fn sentinel_cli(&self, watcher: &Watcher, args: &[&str]) -> String {
        redis_cli(&["-h", "127.0.0.1", "-p", &watcher.port.number().to_string()], self.requirepass, args)
            .await
    }
}

fn watch(primary_port: u16, options: &SentinelOptions) -> Watcher {
    let name = Sentinel::NAME;
    let directory =
        tempfile::Builder::new().prefix("sentinel-").tempdir().expect("make a directory for a Sentinel");
    let port = Port::reserve();
    let mut lines = format!(
        "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor {name} 127.0.0.1 {primary_port} 2\n\
         sentinel down-after-milliseconds {name} {}\nsentinel failover-timeout {name} 5000\n",
        port.number(),
        directory.path().display(),
        options.down_after.as_millis(),
    );
    if let Some(password) = options.requirepass {
        lines.push_str(&format!("requirepass \"{password}\"\nsentinel auth-pass {name} \"{password}\"\nsentinel sentinel-pass \"{password}\"\n"));
    }
    let config = directory.path().join("sentinel.conf");
    fs::write(&config, lines).expect("write a Sentinel's configuration");
    // The same program as redis-sentinel, which is a package of its own.
    let process = Program::new("redis-server").arg(&config).arg("--sentinel").start();
    Watcher { port, process, _directory: directory }
}
