//! Notices for people: the scaler only enqueues them, the tasker sends them.

use jiff::Timestamp;
use serde_json::json;
use voiceai_postgres::{PgPool, sqlx};

/// Something worth a person's attention.
#[derive(Debug, Clone)]
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
    /// What the same notice has in common however often it is sent: it is enqueued once.
    pub key: String,
}

/// Enqueues notices through the outbox, as jobs of kind `notification.send` on email-queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Notices {
    pool: PgPool,
}

impl Notices {
    /// On a migrated database.
    #[must_use]
    pub const fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Enqueues a notice. One that cannot be written is logged: nothing of the scaling depends on it.
    pub async fn send(&self, notice: &Notice) {
        let id = format!("scaler:{}:{}", notice.event, notice.key);
        let payload = json!({
            "event": notice.event,
            "group": notice.group,
            "server": notice.server,
            "reason": notice.reason,
            "at": notice.at,
        });
        let written = sqlx::query(
            "INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, 'email-queue', 'notification.send', $2::json) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&id)
        .bind(payload.to_string())
        .execute(&self.pool)
        .await;
        if let Err(error) = written {
            let (event, group) = (notice.event, &notice.group);
            tracing::warn!(%error, event, group, reason = notice.reason, "notice not enqueued");
        }
    }
}
