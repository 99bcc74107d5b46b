use serde::{Deserialize, Serialize};
use uuid::Uuid;
use voiceai_redis::{Redis, RedisErrorKind};

use crate::LeaderError;

/// What stands in the leader key: who leads, for people and for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderRecord {
    /// INSTANCE_ID of the leader.
    pub instance_id: String,
    /// Its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// Its term. 0 for the moment between taking the lease and being given a term: it does not act yet.
    pub term: i64,
    /// When it was elected.
    pub elected_at: jiff::Timestamp,
}

/// The record as it is written: what the lease's own scripts compare, beside what people read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Written {
    #[serde(flatten)]
    pub(crate) record: LeaderRecord,
    /// Told from every other process that ever held the lease, one of the same instance id included.
    pub(crate) nonce: Uuid,
    /// The holder's LEADER_LOCK_TTL_MS: what a remaining time above it means, no other process can know.
    pub(crate) ttl_ms: u64,
}

/// Who leads, as the leader key says. `None`: nobody at this moment.
///
/// # Errors
/// When Redis cannot be read, or the key holds something else.
pub async fn current(redis: &Redis, key: &str) -> Result<Option<LeaderRecord>, LeaderError> {
    let not_a_record = |detail: String| LeaderError::NotARecord { key: key.to_owned(), detail };
    match redis.get(key).await {
        Ok(None) => Ok(None),
        Ok(Some(text)) => serde_json::from_str(&text).map(Some).map_err(|e| not_a_record(e.to_string())),
        Err(error) if error.kind() == RedisErrorKind::WrongType => {
            Err(not_a_record("another type of value".into()))
        }
        Err(source) => Err(LeaderError::Read { key: key.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_form_is_the_documented_one_and_reads_back() {
        let record = LeaderRecord {
            instance_id: "scaler-1".into(),
            host: "h\"1".into(),
            pid: 7,
            term: 3,
            elected_at: "2026-10-25T00:59:59Z".parse().unwrap(),
        };
        let text =
            serde_json::to_string(&Written { record: record.clone(), nonce: Uuid::nil(), ttl_ms: 10_000 })
                .unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["instanceId"], "scaler-1");
        assert_eq!(value["electedAt"], "2026-10-25T00:59:59Z");
        assert_eq!((&value["pid"], &value["term"]), (&7.into(), &3.into()));
        assert_eq!(serde_json::from_str::<LeaderRecord>(&text).unwrap(), record);
    }
}
