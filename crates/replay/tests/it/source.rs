//! A domain of items in memory.

use std::collections::BTreeMap;
use std::sync::Mutex;

use voiceai_replay::{Begin, Candidate, Filter, Item, Outcome, Plan, Release, Source, Store};

/// What becomes of an item once it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Completes,
    Dies,
    StaysOpen,
    KeyHeld,
}

#[derive(Debug, thiserror::Error)]
#[error("the domain is away")]
pub(crate) struct Away;

#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) fates: BTreeMap<String, Fate>,
    pub(crate) released: Mutex<Vec<String>>,
    /// Fails, after having had its effect, once so many items were released.
    pub(crate) reply_lost_at: Option<usize>,
}

impl Memory {
    pub(crate) fn with(fates: impl IntoIterator<Item = Fate>) -> Self {
        let fates = fates.into_iter().enumerate().map(|(at, fate)| (format!("{at:03}"), fate)).collect();
        Self { fates, ..Self::default() }
    }

    pub(crate) fn released(&self) -> Vec<String> {
        self.released.lock().unwrap().clone()
    }

    pub(crate) fn plan(&self, limit: usize) -> Plan {
        let candidates = self.fates.keys().map(|id| Candidate {
            place: "q".into(),
            id: id.clone(),
            content: None,
            shown: serde_json::json!({}),
            refused: None,
        });
        Plan::of(candidates.collect(), self.fates.len() as u64, limit)
    }
}

impl Source for Memory {
    type Error = Away;

    async fn release(&self, item: &Item) -> Result<Release, Away> {
        let mut released = self.released.lock().unwrap();
        if released.contains(&item.id) {
            return Ok(Release::NotGivenUp);
        }
        if self.fates[&item.id] == Fate::KeyHeld {
            return Ok(Release::Skipped("key held".into()));
        }
        released.push(item.id.clone());
        if self.reply_lost_at == Some(released.len()) { Err(Away) } else { Ok(Release::Released) }
    }

    async fn outcomes(&self, items: &[Item]) -> Result<Vec<Outcome>, Away> {
        Ok(items
            .iter()
            .map(|item| match self.fates[&item.id] {
                Fate::Completes => Outcome::Completed,
                Fate::Dies => Outcome::Died("again".into()),
                Fate::StaysOpen | Fate::KeyHeld => Outcome::Open,
            })
            .collect())
    }
}

pub(crate) const VERSION: &str = "1.2.3";

pub(crate) fn filter() -> Filter {
    Filter::new().with("kind", Some("a"))
}

pub(crate) async fn store() -> (Store, voiceai_testkit::Database) {
    let database = voiceai_testkit::database().await;
    (Store::new(database.pool().await, "voiceai-tasker"), database)
}

pub(crate) async fn begin(store: &Store, plan: &Plan) -> uuid::Uuid {
    let begin = Begin {
        subject: "jobs",
        filter: &filter(),
        version: VERSION,
        actor: "ann",
        reason: "the provider is back",
        limit: 10,
        per_second: 1_000.0,
        plan,
    };
    store.begin(&begin).await.unwrap()
}
