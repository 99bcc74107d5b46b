//! Walks over the key space, one primary after the other.

use fred::interfaces::ClusterInterface as _;
use fred::prelude::ClientLike as _;
use fred::types::config::{Options, Server};
use fred::types::{ClusterHash, CustomCommand, Value};

use crate::error::RedisError;
use crate::{Redis, Topology};

/// One server that holds a part of the keys.
#[derive(Clone, Debug)]
pub struct Primary(Option<Server>);

impl Redis {
    /// The servers that hold the keys: every primary of a cluster as it is known now, else the one server.
    #[must_use]
    pub fn primaries(&self) -> Vec<Primary> {
        if self.settings().topology() != Topology::Cluster {
            return vec![Primary(None)];
        }
        let known = self.client.cached_cluster_state();
        known.map_or_else(Vec::new, |state| {
            state.unique_primary_nodes().into_iter().map(|server| Primary(Some(server))).collect()
        })
    }

    /// One step of a walk over one primary's keys that match `pattern`, about `count` keys long. The cursor begins with `0`;
    /// the one returned is for the next step, and `0` when the walk is over.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn scan_step(
        &self,
        primary: &Primary,
        cursor: &str,
        pattern: &str,
        count: i64,
    ) -> Result<(String, Vec<String>), RedisError> {
        let options = Options { cluster_node: primary.0.clone(), ..self.options.clone() };
        let command = CustomCommand::new_static("SCAN", ClusterHash::Random, false);
        let args: Vec<Value> =
            vec![cursor.into(), "MATCH".into(), pattern.into(), "COUNT".into(), count.into()];
        let reply: Result<(String, Vec<String>), _> =
            self.client.with_options(&options).custom(command, args).await;
        reply.map_err(|error| RedisError::from_fred("SCAN", &error))
    }

    /// What one primary says of itself: the text of `INFO`.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn info_of(&self, primary: &Primary) -> Result<String, RedisError> {
        let options = Options { cluster_node: primary.0.clone(), ..self.options.clone() };
        let command = CustomCommand::new_static("INFO", ClusterHash::Random, false);
        let reply: Result<String, _> =
            self.client.with_options(&options).custom(command, Vec::<Value>::new()).await;
        reply.map_err(|error| RedisError::from_fred("INFO", &error))
    }
}
