use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, Row};

use crate::Filter;
use crate::store::{ReplayError, failed};

/// How far a replay has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayState {
    /// Items are left to be released; whoever carries it out may have been interrupted.
    Running,
    /// Every item was released or skipped.
    Released,
    /// Too many died: the rest was left alone.
    Stopped,
}

impl ReplayState {
    pub(crate) fn parse(id: Uuid, text: &str) -> Result<Self, ReplayError> {
        Ok(match text {
            "running" => Self::Running,
            "released" => Self::Released,
            "stopped" => Self::Stopped,
            other => return Err(ReplayError::Unknown { id, what: "state", found: other.to_owned() }),
        })
    }
}

/// What became of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemState {
    /// Not released yet.
    Pending,
    /// Being released: nobody knows whether the effect came before a crash.
    Releasing,
    /// Released; not known to have ended.
    Released,
    /// Ended well.
    Completed,
    /// Given up again.
    Died,
    /// Not released, for the reason in its detail.
    Skipped,
    /// Removed by somebody after its release.
    Gone,
}

impl ItemState {
    const WORDS: [(&'static str, Self); 7] = [
        ("pending", Self::Pending),
        ("releasing", Self::Releasing),
        ("released", Self::Released),
        ("completed", Self::Completed),
        ("died", Self::Died),
        ("skipped", Self::Skipped),
        ("gone", Self::Gone),
    ];

    pub(crate) fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, state)| *state == self).map_or("pending", |(word, _)| word)
    }

    pub(crate) fn parse(id: Uuid, text: &str) -> Result<Self, ReplayError> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, state)| *state).ok_or_else(|| ReplayError::Unknown {
            id,
            what: "item state",
            found: text.to_owned(),
        })
    }
}

/// One replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    /// Its id.
    pub id: Uuid,
    /// What is replayed: `jobs`.
    pub subject: String,
    /// What was selected.
    pub filter: Filter,
    /// The version that began it.
    pub version: String,
    /// Who began it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// The limit given.
    pub limit: i32,
    /// Items released in each second.
    pub per_second: f64,
    /// How many the filter selected.
    pub matched: i64,
    /// How far it has come.
    pub state: ReplayState,
    /// Why it stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// Deaths that a person accepted by going on.
    pub deaths_forgiven: i32,
    /// When it was begun.
    pub created_at: jiff::Timestamp,
    /// What became of its items.
    pub counts: Counts,
}

/// Items of a replay by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All items.
    pub items: i64,
    /// Not released yet.
    pub pending: i64,
    /// Released, not known to have ended.
    pub open: i64,
    /// Ended well.
    pub completed: i64,
    /// Given up again.
    pub died: i64,
    /// Not released.
    pub skipped: i64,
    /// Removed by somebody after their release.
    pub gone: i64,
}

/// One item of a replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// Its place in the order, from 0.
    pub position: i32,
    /// Where it lies: a queue's name.
    pub place: String,
    /// Its id there.
    pub id: String,
    /// What is needed to make it anew; absent for what is there.
    #[serde(skip)]
    pub content: Option<Value>,
    /// What became of it.
    pub state: ItemState,
    /// Why, where there is something to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it was released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_at: Option<jiff::Timestamp>,
}

pub(crate) fn replay(row: &PgRow) -> Result<Replay, ReplayError> {
    let id: Uuid = row.try_get(0).map_err(failed("read the replay"))?;
    let state: String = row.try_get(9).map_err(failed("read the replay"))?;
    let filter: Value = row.try_get(2).map_err(failed("read the replay"))?;
    let filter = serde_json::from_value(filter.clone()).map_err(|_| ReplayError::Unknown {
        id,
        what: "filter",
        found: filter.to_string(),
    })?;
    let state = ReplayState::parse(id, &state)?;
    let read = || -> Result<Replay, sqlx::Error> {
        Ok(Replay {
            id,
            subject: row.try_get(1)?,
            filter,
            version: row.try_get(3)?,
            actor: row.try_get(4)?,
            reason: row.try_get(5)?,
            limit: row.try_get(6)?,
            per_second: row.try_get(7)?,
            matched: row.try_get(8)?,
            state,
            stop_reason: row.try_get(10)?,
            deaths_forgiven: row.try_get(11)?,
            created_at: row.try_get::<jiff_sqlx::Timestamp, _>(12)?.to_jiff(),
            counts: Counts {
                items: row.try_get(13)?,
                pending: row.try_get(14)?,
                open: row.try_get(15)?,
                completed: row.try_get(16)?,
                died: row.try_get(17)?,
                skipped: row.try_get(18)?,
                gone: row.try_get(19)?,
            },
        })
    };
    read().map_err(failed("read the replay"))
}

pub(crate) fn item(id: Uuid, row: &PgRow) -> Result<Item, ReplayError> {
    let state: String = row.try_get(4).map_err(failed("read the replay's items"))?;
    let state = ItemState::parse(id, &state)?;
    let read = || -> Result<Item, sqlx::Error> {
        Ok(Item {
            position: row.try_get(0)?,
            place: row.try_get(1)?,
            id: row.try_get(2)?,
            content: row.try_get(3)?,
            state,
            detail: row.try_get(5)?,
            released_at: row
                .try_get::<Option<jiff_sqlx::Timestamp>, _>(6)?
                .map(jiff_sqlx::Timestamp::to_jiff),
        })
    };
    read().map_err(failed("read the replay's items"))
}
