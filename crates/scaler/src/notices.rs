//! Notices for people: the scaler only enqueues them, the tasker sends them.
//!
//! A notice is a row of the outbox, a job of kind `notification.send` on email-queue. It is written by the very statement that
//! writes what it tells of: whoever dies in between has done both or neither, and a stale leader neither.

use jiff::Timestamp;
use serde_json::json;

/// Something worth a person's attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `scaled`, `failed`, `degraded` or `drain_overdue`.
    pub event: &'static str,
    /// The server group.
    pub group: String,
    /// The server, where it is about one.
    pub server: Option<String>,
    /// In one line.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// What the same notice has in common however often it is written: it is enqueued once.
    pub key: String,
}

/// Notices as two columns of the same length, for a statement that holds [`enqueue_notices!`].
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Ids of the jobs.
    pub(crate) ids: Vec<String>,
    /// Payloads of the jobs, JSON.
    pub(crate) payloads: Vec<String>,
}

impl<'a> FromIterator<&'a Notice> for Columns {
    fn from_iter<T: IntoIterator<Item = &'a Notice>>(notices: T) -> Self {
        let mut columns = Self::default();
        for notice in notices {
            columns.ids.push(format!("scaler:{}:{}", notice.event, notice.key));
            let payload = json!({
                "event": notice.event,
                "group": notice.group,
                "server": notice.server,
                "reason": notice.reason,
                "at": notice.at,
            });
            columns.payloads.push(payload.to_string());
        }
        columns
    }
}

/// The part of a statement that enqueues notices if `$from`, another part of it, has a row. `$ids` and `$payloads` are the
/// parameters with [`Columns`]. An id that the outbox would not take (a key is made of names that are not ours) is replaced
/// by its digest: a notice must never keep a step from being written.
macro_rules! enqueue_notices {
    ($from:literal, $ids:literal, $payloads:literal) => {
        concat!(
            "notices AS ( INSERT INTO ops.outbox (id, queue, kind, payload) \
                 SELECT CASE WHEN octet_length(n.id) <= 128 AND n.id !~ '[[:space:][:cntrl:]]' THEN n.id \
                             ELSE 'scaler:' || encode(sha256(convert_to(n.id, 'UTF8')), 'hex') END, 'email-queue', 'notification.send', n.payload::json \
                 FROM (SELECT FROM ",
            $from,
            " LIMIT 1) told, unnest(",
            $ids,
            "::text[], ",
            $payloads,
            "::text[]) AS n(id, payload) ON CONFLICT DO NOTHING) "
        )
    };
}
pub(crate) use enqueue_notices;
