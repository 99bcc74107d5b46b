//! Heartbeats in Redis.
//!
//! Those of known names are read in one MGET, whatever their number. Names that we do not know are found beside that: a
//! task of its own walks the key space with SCAN, a bounded number of steps at a time, and remembers what it found, so that
//! no evaluation ever waits for a walk over a key space that it shares with queues.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use voiceai_redis::{Key, Redis, RedisError};
use voiceai_scaler_core::heartbeat::{self, Beat, Reading, Unknown};
use voiceai_scaler_core::name::is_label_value;

/// Keys asked of the server per SCAN step.
const SCAN_COUNT: i64 = 2_000;
/// Steps in one turn of the walk; a key space of a million keys takes a few turns.
const STEPS_PER_TURN: usize = 200;
/// Most names of others that are remembered.
const NAMES_MAX: usize = 100_000;
/// How long a name that has stopped beating is still asked for: in a Redis that was emptied, its server beats again before the
/// next walk finds it.
const ASKED_ON: Duration = Duration::from_secs(60);
/// For how long the last heartbeat of a server of others counts on that is gone from Redis: nothing is bought in its place
/// before it could beat again. Its age is judged as ever.
const COUNTED_ON: Duration = Duration::from_secs(15);

/// The heartbeats of one moment.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats {
    /// Parsed once, however often they are asked for. A name without a heartbeat is not in it.
    beats: HashMap<String, Result<Beat, String>>,
    /// True when they could not be read.
    pub unreadable: bool,
}

impl Heartbeats {
    /// Nothing could be read.
    #[must_use]
    pub fn unreadable() -> Self {
        Self { beats: HashMap::new(), unreadable: true }
    }

    /// The reading of one of our servers, which must speak for its own group if it names one.
    #[must_use]
    pub fn of(&self, name: &str, group: &str, now: Timestamp, stale_after: SignedDuration) -> Reading {
        match self.beats.get(name) {
            // Judged before it is copied.
            Some(Ok(beat)) if beat.group.as_deref().is_none_or(|named| named == group) => {
                heartbeat::judge(beat, now, stale_after)
            }
            _ => of_group(self.any(name, now, stale_after), group),
        }
    }

    /// The reading under a name, whatever group it speaks for.
    #[must_use]
    pub fn any(&self, name: &str, now: Timestamp, stale_after: SignedDuration) -> Reading {
        if self.unreadable {
            return Reading::Unknown(Unknown::Unreadable);
        }
        match self.beats.get(name) {
            None => Reading::Unknown(Unknown::Missing),
            Some(Err(why)) => Reading::Unknown(Unknown::Malformed(why.clone())),
            Some(Ok(beat)) => heartbeat::judge(beat, now, stale_after),
        }
    }

    /// Names under which something stands, whether or not it can be believed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.beats.keys().map(String::as_str)
    }

    /// Names with a heartbeat, and the reading of each.
    pub fn all(&self, now: Timestamp, stale_after: SignedDuration) -> impl Iterator<Item = (&str, Reading)> {
        self.names().map(move |name| (name, self.any(name, now, stale_after)))
    }
}

/// A reading that names another group says nothing about this one.
fn of_group(reading: Reading, group: &str) -> Reading {
    match reading {
        Reading::Known(beat) if beat.group.as_deref().is_some_and(|named| named != group) => {
            Reading::Unknown(Unknown::OtherGroup(beat.group.unwrap_or_default()))
        }
        other => other,
    }
}

/// A name of others.
#[derive(Debug)]
struct Found {
    /// When it was last seen in Redis.
    seen: Instant,
    /// What it said then, once that was read.
    beat: Option<Beat>,
}

/// Reads heartbeats. Cheap to clone; clones share what the walk has found.
#[derive(Clone, Debug)]
pub struct HeartbeatReader {
    redis: Redis,
    prefix: Arc<str>,
    found: Arc<Mutex<BTreeMap<String, Found>>>,
    /// The names that were last read as known: the walk passes over them, so that however large our own fleet is, others are
    /// found.
    known: Arc<Mutex<Arc<HashSet<String>>>>,
    /// True once a walk has been made to its end.
    walked: Arc<watch::Sender<bool>>,
}

impl HeartbeatReader {
    /// Of keys that begin with `prefix`.
    #[must_use]
    pub fn new(redis: Redis, prefix: &str) -> Self {
        Self {
            redis,
            prefix: Arc::from(prefix),
            found: Arc::default(),
            known: Arc::default(),
            walked: Arc::default(),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The heartbeats of `known` and of every other name the walk has found, in one round trip.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn read(&self, known: impl IntoIterator<Item = String>) -> Result<Heartbeats, RedisError> {
        let mut names: Vec<String> = known.into_iter().collect();
        names.extend(self.others(&names));
        let mut read = self.beats(names).await?;
        self.count_on(&mut read);
        Ok(read)
    }

    /// The same, while a walk that has not been made to its end yet goes on beside it for at most `within`. The names found by
    /// then cost a round trip of their own.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn read_beside_a_walk(
        &self,
        known: Vec<String>,
        within: Duration,
    ) -> Result<Heartbeats, RedisError> {
        if *self.walked.borrow() {
            return self.read(known).await;
        }
        let (ours, ()) = tokio::join!(self.beats(known.clone()), self.after_a_walk(within));
        let mut all = ours?;
        let others = self.others(&known);
        if !others.is_empty() {
            all.beats.extend(self.beats(others).await?.beats);
            self.count_on(&mut all);
        }
        Ok(all)
    }

    /// Adds the last heartbeats of names of others that are gone only a moment. What stopped beating a while ago is forgotten;
    /// the walk finds it again if it comes back.
    fn count_on(&self, read: &mut Heartbeats) {
        let now = Instant::now();
        self.found().retain(|name, found| {
            if let Some(beat) = read.beats.get(name) {
                *found = Found { seen: now, beat: beat.as_ref().ok().cloned() };
                return true;
            }
            if let Some(beat) = found.beat.clone().filter(|_| found.seen.elapsed() < COUNTED_ON) {
                read.beats.insert(name.clone(), Ok(beat));
            }
            found.seen.elapsed() < ASKED_ON
        });
    }

    async fn beats(&self, names: Vec<String>) -> Result<Heartbeats, RedisError> {
        let keys = names.iter().map(|name| Key::from(self.key(name))).collect();
        let values = self.redis.get_many(keys).await?;
        let beats: HashMap<String, Result<Beat, String>> = names
            .into_iter()
            .zip(values)
            .filter_map(|(name, raw)| Some((name, heartbeat::parse(raw?.as_bytes()))))
            .collect();
        Ok(Heartbeats { beats, unreadable: false })
    }

    /// One server's reading.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn one(
        &self,
        name: &str,
        group: &str,
        now: Timestamp,
        stale_after: SignedDuration,
    ) -> Result<Reading, RedisError> {
        let raw = self.redis.get(self.key(name)).await?;
        Ok(of_group(heartbeat::read(raw.as_deref().map(str::as_bytes), now, stale_after), group))
    }

    /// The newest `atMs` under a name, however old; `None` when there is none to be read.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn newest_at(&self, name: &str) -> Result<Option<Timestamp>, RedisError> {
        let raw = self.redis.get(self.key(name)).await?;
        Ok(raw.and_then(|raw| heartbeat::parse(raw.as_bytes()).ok()).map(|beat| beat.at))
    }

    /// Removes what is left under the name of a server that is gone.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn forget(&self, name: &str) -> Result<(), RedisError> {
        self.redis.del(vec![Key::from(self.key(name))]).await.map(|_| ())
    }

    /// Walks the whole key space once for names that beat: every primary of a cluster.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn discover(&self) -> Result<(), RedisError> {
        let pattern = format!("{}*", escape(&self.prefix));
        let mut steps = 0;
        for primary in self.redis.primaries() {
            let mut cursor = "0".to_owned();
            loop {
                let (next, keys) = self.redis.scan_step(&primary, &cursor, &pattern, SCAN_COUNT).await?;
                self.remember(keys);
                if next == "0" {
                    break;
                }
                cursor = next;
                steps += 1;
                if steps % STEPS_PER_TURN == 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        self.walked.send_replace(true);
        Ok(())
    }

    /// Waits until a walk has been made, at most this long: before it, servers of others are not known.
    async fn after_a_walk(&self, within: Duration) {
        let mut walked = self.walked.subscribe();
        let _ = tokio::time::timeout(within, walked.wait_for(|walked| *walked)).await;
    }

    /// From now on these names are no others'.
    pub fn know(&self, names: impl IntoIterator<Item = String>) {
        *lock(&self.known) = Arc::new(names.into_iter().collect());
    }

    /// What the walk has found besides `names`.
    fn others(&self, names: &[String]) -> Vec<String> {
        let mut found = self.found();
        if found.is_empty() {
            return Vec::new();
        }
        let ours: HashSet<&str> = names.iter().map(String::as_str).collect();
        let known = Arc::clone(&lock(&self.known));
        found.retain(|name, _| !known.contains(name));
        found.keys().filter(|name| !ours.contains(name.as_str())).cloned().collect()
    }

    fn remember(&self, keys: Vec<String>) {
        let known = Arc::clone(&lock(&self.known));
        let mut found = self.found();
        for key in keys {
            // A name that is no name is nobody's server.
            if let Some(name) = key.strip_prefix(&*self.prefix).filter(|name| is_label_value(name))
                && found.len() < NAMES_MAX
                && !known.contains(name)
            {
                found.entry(name.to_owned()).or_insert(Found { seen: Instant::now(), beat: None });
            }
        }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Found>> {
        lock(&self.found)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The prefix as a literal within a glob pattern.
pub(crate) fn escape(prefix: &str) -> String {
    let mut escaped = String::new();
    for character in prefix.chars() {
        if "*?[]\\".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
