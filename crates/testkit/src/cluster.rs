//! A Redis Cluster of three primaries with a replica each.

use std::time::Duration;

use tokio::process::Command;

use crate::ports::Port;
use crate::redis_server::{RedisOptions, RedisServer};
use crate::wait::wait_for;

const READY_WITHIN: Duration = Duration::from_secs(90);

/// Six servers that share the slots. Ended on drop.
#[derive(Debug)]
pub struct Cluster {
    servers: Vec<RedisServer>,
    /// The servers' ports for each other.
    _buses: Vec<Port>,
}

impl Cluster {
    /// Starts the servers and waits until all of them call the cluster whole.
    pub async fn start() -> Self {
        let mut servers = Vec::new();
        let mut buses = Vec::new();
        for _ in 0..6 {
            let bus = Port::reserve();
            let extra = [
                ("cluster-enabled", "yes"),
                ("cluster-config-file", "nodes.conf"),
                ("cluster-node-timeout", "2000"),
                ("repl-diskless-sync-delay", "0"),
                // The default, port + 10000, lies in the range of outgoing connections.
                ("cluster-port", &bus.number().to_string()),
            ];
            let extra = extra.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            servers.push(RedisServer::start(RedisOptions { extra, ..RedisOptions::default() }).await);
            buses.push(bus);
        }
        let addresses = servers.iter().map(|server| format!("127.0.0.1:{}", server.port()));
        let created = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .await
            .expect("run redis-cli");
        assert!(created.status.success(), "create the cluster: {}", String::from_utf8_lossy(&created.stdout));
        let cluster = Self { servers, _buses: buses };
        wait_for(READY_WITHIN, "every server calls the cluster whole", async || {
            for server in &cluster.servers {
                let info = server.cli(&["CLUSTER", "INFO"]).await;
                let nodes = server.cli(&["CLUSTER", "NODES"]).await;
                if !info.contains("cluster_state:ok")
                    || nodes.lines().filter(|line| line.contains("slave")).count() != 3
                {
                    return Err(format!("{info}\n{nodes}"));
                }
                // A replica that has not yet copied its primary cannot follow it.
                let replication = server.cli(&["INFO", "replication"]).await;
                if !replication.contains("master_link_status:up") && !replication.contains("state=online") {
                    return Err(replication);
                }
            }
            Ok(())
        })
        .await;
        cluster
    }

    /// `redis-cluster://…` with the first two servers as entry points.
    #[must_use]
    pub fn url(&self) -> String {
        format!(
            "redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}",
            self.servers[0].port(),
            self.servers[1].port()
        )
    }

    /// All ports.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(RedisServer::port).collect()
    }

    /// The server that owns a key's slot now.
    pub async fn owner_of(&mut self, key: &str) -> &mut RedisServer {
        let port = self.owner_port(key).await;
        self.servers.iter_mut().find(|server| server.port() == port).expect("the owner is one of ours")
    }

    /// Promotes a replica of the key's owner (`CLUSTER FAILOVER`), as at maintenance, and waits until it owns the slot.
    pub async fn failover(&self, key: &str, within: Duration) {
        let old = self.owner_port(key).await;
        let any = self.alive();
        let nodes = any.cli(&["CLUSTER", "NODES"]).await;
        let id_of_old = nodes
            .lines()
            .find(|line| line.contains(&format!("127.0.0.1:{old}@")))
            .and_then(|line| line.split(' ').next())
            .expect("the owner is listed")
            .to_owned();
        let replica = self
            .servers
            .iter()
            .find(|server| {
                nodes.lines().any(|line| {
                    line.contains(&format!("127.0.0.1:{}@", server.port()))
                        && line.contains("slave")
                        && line.contains(&id_of_old)
                })
            })
            .expect("the owner has a replica");
        let answer = replica.cli(&["CLUSTER", "FAILOVER"]).await;
        assert_eq!(answer, "OK", "CLUSTER FAILOVER was refused");
        self.wait_for_new_owner(key, old, within).await;
    }

    /// Waits until another server than `old_port` owns the key's slot.
    pub async fn wait_for_new_owner(&self, key: &str, old_port: u16, within: Duration) {
        wait_for(within, "another server owns the slot", async || match self.find_owner(key).await? {
            now if now == old_port => Err(format!("{old_port} still does")),
            _other => Ok(()),
        })
        .await;
    }

    /// The port of the server that owns a key's slot now.
    pub async fn owner_port(&self, key: &str) -> u16 {
        wait_for(READY_WITHIN, format!("a server owns the slot of {key}"), async || {
            self.find_owner(key).await
        })
        .await
    }

    async fn find_owner(&self, key: &str) -> Result<u16, String> {
        let any = self.alive();
        let slot = any.cli(&["CLUSTER", "KEYSLOT", key]).await;
        let slot: u16 = slot.parse().map_err(|_| format!("CLUSTER KEYSLOT answered {slot}"))?;
        let nodes = any.cli(&["CLUSTER", "NODES"]).await;
        let owner = nodes.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| {
            // A dead primary is listed with its slots until a replica has taken them.
            words.get(2).is_some_and(|flags| flags.split(',').all(|flag| flag != "fail")) && owns(words, slot)
        });
        owner
            .and_then(|words| words.get(1)?.split(['@', ',']).next()?.rsplit(':').next()?.parse().ok())
            .ok_or_else(|| format!("nobody owns slot {slot}:\n{nodes}"))
    }

    fn alive(&self) -> &RedisServer {
        self.servers.iter().find(|server| server.process().is_some()).expect("a server of the cluster is up")
    }
}

/// Whether a line of CLUSTER NODES holds the slot: from its ninth word on, `FIRST-LAST` or `ONE`.
fn owns(words: &[&str], slot: u16) -> bool {
    words.iter().skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
    })
}
