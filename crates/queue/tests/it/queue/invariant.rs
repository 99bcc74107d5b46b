//! The invariant checker: every job is in exactly one place, and the books balance.

use std::collections::{BTreeMap, BTreeSet};

use voiceai_queue::Client;
use voiceai_redis::{FromValue, Value};

struct Look<'a> {
    client: &'a Client,
    queue: &'a str,
}

impl Look<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("voiceai:queue:{{{}}}:{suffix}", self.queue)
    }

    async fn ask<T: FromValue>(&self, name: &'static str, suffix: &str, rest: &[&str]) -> T {
        let mut args = vec![self.key(suffix)];
        args.extend(rest.iter().map(|a| (*a).to_owned()));
        self.client.redis().command(name, args).await.unwrap()
    }

    async fn hash(&self, suffix: &str) -> BTreeMap<String, String> {
        let flat: Vec<String> = self.ask("HGETALL", suffix, &[]).await;
        flat.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone())).collect()
    }

    async fn zset(&self, suffix: &str) -> Vec<String> {
        self.ask("ZRANGE", suffix, &["0", "-1"]).await
    }
}

/// Checks a queue at rest or at work; retried once, as a look takes several calls.
pub(crate) async fn check(client: &Client, queue: &str) {
    if let Err(first) = look(client, queue).await
        && let Err(second) = look(client, queue).await
    {
        panic!("invariant broken:\n{first}\nand again:\n{second}");
    }
}

async fn look(client: &Client, queue: &str) -> Result<(), String> {
    let l = Look { client, queue };
    let mut jobs = l.hash("jobs").await;
    let later = l.hash("later").await;
    let ghosts: BTreeSet<String> =
        l.ask::<Vec<String>>("SMEMBERS", "ghosts", &[]).await.into_iter().collect();
    let finished: BTreeSet<String> = l.zset("finished").await.into_iter().collect();
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut put = |id: &str, place: &str| places.entry(id.to_owned()).or_default().push(place.to_owned());

    let prefix = l.key("lane:");
    let keys: Vec<String> =
        client.redis().command("KEYS", vec![format!("{}*", prefix.replace(['{', '}'], "?"))]).await.unwrap();
    let mut rings: BTreeSet<String> = BTreeSet::new();
    for ring in ["ready", "held", "suspect"] {
        rings.extend(l.zset(ring).await);
    }
    let mut waiting = 0_u64;
    for key in &keys {
        let lane = &key[prefix.len()..];
        let ids: Vec<String> = client.redis().command("LRANGE", vec![key.as_str(), "0", "-1"]).await.unwrap();
        if !rings.contains(lane) {
            return Err(format!("lane `{lane}` holds {} jobs and is in no ring", ids.len()));
        }
        for id in ids {
            if ghosts.contains(&id) {
                if jobs.get(&id).is_none_or(|e| !e.is_empty()) {
                    return Err(format!("ghost {id} has an envelope"));
                }
                put(&id, "ghost");
            } else {
                waiting += 1;
                put(&id, lane);
            }
        }
    }
    let delayed = l.zset("delayed").await;
    delayed.iter().for_each(|id| put(id, "delayed"));
    let active = l.hash("active").await;
    active.keys().filter(|id| !id.is_empty()).for_each(|id| put(id, "active"));
    let dead = l.zset("dead").await;
    dead.iter().for_each(|id| put(id, "dead"));
    finished.iter().for_each(|id| put(id, "finished"));

    for (id, envelope) in later {
        if places.get(&id).is_none_or(|places| places != &["delayed"]) {
            return Err(format!("{id} is kept for later and is in {:?}", places.get(&id)));
        }
        if jobs.insert(id.clone(), envelope).is_some() {
            return Err(format!("{id} has two envelopes"));
        }
    }
    for (id, envelope) in &jobs {
        match places.get(id).map(Vec::as_slice) {
            Some([_one]) => {}
            Some(many) => return Err(format!("job {id} is in {many:?}")),
            None => return Err(format!("job {id} is nowhere: {envelope:?}")),
        }
    }
    if let Some(id) = places.keys().find(|id| !jobs.contains_key(*id)) {
        return Err(format!("{id} is in {:?} without an envelope", places[id]));
    }
    let stats = client.stats(queue).await.map_err(|e| e.to_string())?;
    if !stats.balances() {
        return Err(format!("the books do not balance: {stats:?}"));
    }
    if stats.waiting != waiting || stats.dead != dead.len() as u64 || stats.delayed != delayed.len() as u64 {
        return Err(format!("counted {waiting} waiting, {} dead: {stats:?}", dead.len()));
    }
    // Limits are tied to what runs: a slot without its running job is a leak.
    let slots: Vec<String> = client
        .redis()
        .command("KEYS", vec![format!("{}*", l.key("slot:").replace(['{', '}'], "?"))])
        .await
        .unwrap();
    for slot in slots {
        let ids: Vec<String> = client.redis().command("SMEMBERS", vec![slot.as_str()]).await.unwrap();
        if let Some(id) = ids.iter().find(|id| !active.contains_key(*id)) {
            return Err(format!("{slot} holds {id}, which does not run"));
        }
    }
    Ok(())
}

/// All keys that a queue left, for tests that expect none of a kind.
pub(crate) async fn keys(client: &Client) -> Vec<String> {
    let keys: Value = client.redis().command("KEYS", vec!["*"]).await.unwrap();
    let mut keys: Vec<String> = keys.convert().unwrap();
    keys.sort();
    keys
}
