//! Leader terms and the fence that makes a former leader harmless.
//!
//! A term is issued by one statement and never repeats. A leader's write carries it in the same statement:
//!
//! ```sql
//! WITH leader AS (
//!     SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE
//! )
//! UPDATE … SET … FROM leader WHERE …
//! ```
//!
//! `FOR SHARE` makes the statement wait for an election that is being committed and then see its result, so a write
//! either comes before the next term or not at all. Where it found no leader row, the caller reports [`refused`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use opentelemetry::KeyValue;
use serde::Serialize;
use sqlx::{PgPool, Row};
use voiceai_runtime::{BootTime, boot_now};

/// A leader's number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Term {
    /// Which election: the leader key's name.
    pub name: Arc<str>,
    /// Higher is newer. Never repeats.
    pub number: i64,
}

/// This process may no longer act as the leader: its lease was not renewed in time, or it resigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("term {} of `{}` is no longer trusted", term.number, term.name)]
pub struct NotTrusted {
    /// The term that ended.
    pub term: Term,
}

/// A term and how long it may be trusted. Clones share the same state, so an effect that was begun long ago still sees
/// the end of its leadership.
#[derive(Clone, Debug)]
pub struct Tenure(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    term: Term,
    trusted_until_ms: AtomicU64,
    held: AtomicBool,
}

impl PartialEq for Tenure {
    fn eq(&self, other: &Self) -> bool {
        self.0.term == other.0.term && self.is_held() == other.is_held()
    }
}

impl Tenure {
    /// A tenure that is trusted until `trusted_until`. `held`: elected, but not allowed to act until a person says so.
    #[must_use]
    pub fn new(term: Term, trusted_until: BootTime, held: bool) -> Self {
        Self(Arc::new(Inner {
            term,
            trusted_until_ms: AtomicU64::new(trusted_until.as_millis()),
            held: AtomicBool::new(held),
        }))
    }

    /// The term. To be carried into every fenced write.
    #[must_use]
    pub fn term(&self) -> &Term {
        &self.0.term
    }

    /// True while the lease is known to be ours.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        boot_now() < BootTime::from_millis(self.0.trusted_until_ms.load(Ordering::Acquire))
    }

    /// Asked before every effect.
    ///
    /// # Errors
    /// When the lease may have passed to another.
    pub fn check(&self) -> Result<&Term, NotTrusted> {
        if self.is_trusted() { Ok(&self.0.term) } else { Err(NotTrusted { term: self.0.term.clone() }) }
    }

    /// True while the database is known to have gone back in time and nobody released the leader yet: no scaling, no
    /// cron catch-up.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.held.load(Ordering::Acquire)
    }

    /// Called by the election after a renewal, also after [`Tenure::suspend`]. Never revives a tenure that was ended.
    pub fn extend(&self, trusted_until: BootTime) {
        let _ = self.0.trusted_until_ms.try_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (now != 0).then(|| now.max(trusted_until.as_millis()))
        });
    }

    /// Called by the election when it is not known whether the lease is still ours: nothing is trusted until the next
    /// [`Tenure::extend`].
    pub fn suspend(&self) {
        let _ = self.0.trusted_until_ms.try_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            // 0 means ended, which is for ever.
            (now != 0).then_some(1)
        });
    }

    /// Called by the election when the lease is lost or given up: from now on nothing is trusted.
    pub fn end(&self) {
        self.0.trusted_until_ms.store(0, Ordering::Release);
    }

    /// Called by the election when a person released the leader.
    pub fn release(&self) {
        self.0.held.store(false, Ordering::Release);
    }
}

/// Who asks for a term.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Which election.
    pub name: &'a str,
    /// `voiceai-scaler` or `voiceai-tasker`, for the audit trail.
    pub service: &'a str,
    /// INSTANCE_ID.
    pub holder: &'a str,
    /// Host name.
    pub host: &'a str,
    /// Process id.
    pub pid: u32,
}

/// A term that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The new term.
    pub term: Term,
    /// The database's own number was lower than a mirror's: it was restored from a backup.
    pub regressed: bool,
    /// Set while a person must release the leader first.
    pub held_reason: Option<String>,
}

/// Issues the next term: GREATEST(own, `mirrored`) + 1, where `mirrored` is the highest number found in any copy. A
/// database that was lower than a copy is audited in the same statement.
///
/// # Errors
/// As the database says. After an unknown outcome just ask again: a skipped number harms nothing.
pub async fn issue(pool: &PgPool, candidate: &Candidate<'_>, mirrored: i64) -> Result<Issued, sqlx::Error> {
    let row = sqlx::query(
        "WITH before AS (SELECT term FROM ops.leader_terms WHERE name = $1), \
              fallen AS (SELECT COALESCE((SELECT term FROM before), 0) < $5 AS is), \
         issued AS ( \
         INSERT INTO ops.leader_terms AS t (name, term, holder, host, pid, elected_at, held_since, held_reason) \
         SELECT $1, GREATEST($5, 0) + 1, $2, $3, $4, now(), \
                CASE WHEN fallen.is THEN now() END, CASE WHEN fallen.is THEN $6 END FROM fallen \
         ON CONFLICT (name) DO UPDATE SET \
             term = GREATEST(t.term, $5) + 1, holder = $2, host = $3, pid = $4, elected_at = now(), \
             held_since = CASE WHEN t.term < $5 THEN now() ELSE t.held_since END, \
             held_reason = CASE WHEN t.term < $5 THEN $6 ELSE t.held_reason END \
         RETURNING t.term, t.held_reason), \
         noted AS ( \
         INSERT INTO ops.audit (service, actor, action, subject, reason, details) \
         SELECT $7, $2, 'leader.term_regressed', $1, $6, jsonb_build_object('term', issued.term, \
             'highest_copy', $5, 'database', COALESCE((SELECT term FROM before), 0)) \
         FROM issued, fallen WHERE fallen.is) \
         SELECT issued.term, fallen.is, issued.held_reason FROM issued, fallen",
    )
    .bind(candidate.name)
    .bind(candidate.holder)
    .bind(candidate.host)
    .bind(i32::try_from(candidate.pid).unwrap_or(0))
    .bind(mirrored)
    .bind("term regressed: the database is older than the terms seen in Redis (restored from a backup?)")
    .bind(candidate.service)
    .fetch_one(pool)
    .await?;
    Ok(Issued {
        term: Term { name: Arc::from(candidate.name), number: row.try_get(0)? },
        regressed: row.try_get(1)?,
        held_reason: row.try_get(2)?,
    })
}

/// True when `term` is still the newest of its election.
///
/// # Errors
/// As the database says.
pub async fn is_newest(pool: &PgPool, term: &Term) -> Result<bool, sqlx::Error> {
    sqlx::query("SELECT EXISTS (SELECT FROM ops.leader_terms WHERE name = $1 AND term = $2)")
        .bind(&*term.name)
        .bind(term.number)
        .fetch_one(pool)
        .await?
        .try_get(0)
}

/// What the database says of an election: its newest term and, while a person must release the leader first, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The newest term.
    pub term: i64,
    /// Set while the leader is held.
    pub held_reason: Option<String>,
}

/// The standing of the election `name`; `None` when no term was ever issued in this database.
///
/// # Errors
/// As the database says.
pub async fn standing(pool: &PgPool, name: &str) -> Result<Option<Standing>, sqlx::Error> {
    let row = sqlx::query("SELECT term, held_reason FROM ops.leader_terms WHERE name = $1")
        .bind(name)
        .fetch_optional(pool)
        .await?;
    row.map(|row| Ok(Standing { term: row.try_get(0)?, held_reason: row.try_get(1)? })).transpose()
}

/// Why the election `name` is held, if it is.
///
/// # Errors
/// As the database says.
pub async fn held_reason(pool: &PgPool, name: &str) -> Result<Option<String>, sqlx::Error> {
    let row = sqlx::query("SELECT held_reason FROM ops.leader_terms WHERE name = $1")
        .bind(name)
        .fetch_optional(pool)
        .await?;
    row.map_or(Ok(None), |row| row.try_get(0))
}

/// Lets the leader of `name` act again. Returns whether it was held.
///
/// # Errors
/// As the database says.
pub async fn release(pool: &PgPool, name: &str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE ops.leader_terms SET held_since = NULL, held_reason = NULL \
         WHERE name = $1 AND held_since IS NOT NULL",
    )
    .bind(name)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Counts and logs an effect that was refused because its term is not the newest. `effect` is a fixed word, such as
/// `operation.step`.
pub fn refused(term: &Term, effect: &'static str) {
    opentelemetry::global::meter("voiceai")
        .u64_counter("voiceai.leader.stale_effects_refused")
        .with_description("Effects refused because their leader's term was not the newest.")
        .build()
        .add(1, &[KeyValue::new("effect", effect), KeyValue::new("election", term.name.to_string())]);
    tracing::warn!(effect, term = term.number, election = &*term.name, "stale term refused");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tenure(for_: Duration) -> Tenure {
        let term = Term { name: Arc::from("t"), number: 3 };
        Tenure::new(term, boot_now().saturating_add(for_), false)
    }

    #[test]
    fn trust_ends_by_itself_and_an_ended_tenure_is_never_revived() {
        assert!(tenure(Duration::ZERO).check().is_err());
        let t = tenure(Duration::from_secs(60));
        assert_eq!(t.check().unwrap().number, 3);
        let shared = t.clone();
        t.end();
        assert!(!shared.is_trusted());
        shared.extend(boot_now().saturating_add(Duration::from_secs(60)));
        assert!(!t.is_trusted());
    }

    #[test]
    fn a_suspended_tenure_is_revived_by_a_renewal_and_by_nothing_once_ended() {
        let t = tenure(Duration::from_secs(60));
        t.suspend();
        assert!(t.check().is_err());
        t.extend(boot_now().saturating_add(Duration::from_secs(60)));
        assert!(t.is_trusted());
        t.end();
        t.suspend();
        t.extend(boot_now().saturating_add(Duration::from_secs(60)));
        assert!(!t.is_trusted());
    }

    #[test]
    fn a_late_renewal_never_shortens_trust() {
        let t = tenure(Duration::from_secs(60));
        t.extend(BootTime::from_millis(1));
        assert!(t.is_trusted());
    }
}
