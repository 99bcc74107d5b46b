//! What a leader learned about its providers, and what their lists showed.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx as _;
use serde::Serialize;
use uuid::Uuid;
use voiceai_postgres::{Tenure, sqlx, term};
use voiceai_scaler_core::orphan::{End, Maker};

use super::rows::{get, time};
use super::{Store, StoreError};
use crate::notices::{Columns, Notice, enqueue_notices};

/// Why a provider is asked for nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HoldKind {
    /// One machine type in one location was out of stock.
    OutOfStock,
    /// The provider's rate limit is used up, or nearly.
    RateLimit,
}

impl HoldKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::OutOfStock => "out_of_stock",
            Self::RateLimit => "rate_limit",
        }
    }
}

/// A provider, or one pair of machine type and location, that is not asked before a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderHold {
    /// Why.
    pub kind: HoldKind,
    /// The provider's folder.
    pub provider: String,
    /// The machine type; empty for the whole provider.
    pub machine: String,
    /// The location; empty for the whole provider.
    pub location: String,
    /// Its end.
    pub until: Timestamp,
    /// The provider's words.
    pub why: String,
}

/// A listed server that no row stands for.
#[derive(Debug, Clone)]
pub struct NewOrphan {
    /// The provider's id.
    pub provider_id: String,
    /// Its name.
    pub name: String,
    /// The group in its label.
    pub group: String,
    /// The operation in its label.
    pub operation: Option<Uuid>,
}

/// What is done about an orphan.
#[derive(Debug, Default)]
pub struct Judgement<'a> {
    /// The stable word.
    pub verdict: &'a str,
    /// True when its deletion is about to be asked for.
    pub asking: bool,
    /// What came of that.
    pub outcome: Option<&'a str>,
    /// What people are told of it.
    pub notice: Option<Notice>,
}

/// An orphan as it is remembered.
#[derive(Debug, Clone, Serialize)]
pub struct OrphanRow {
    /// The provider's folder.
    pub provider: String,
    /// The provider's id.
    pub provider_id: String,
    /// Its name.
    pub name: String,
    /// The group in its label.
    pub group: String,
    /// The operation in its label.
    pub operation: Option<Uuid>,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last seen.
    pub last_seen: Timestamp,
    /// The stable word of what is done about it.
    pub verdict: String,
    /// What came of its deletion, once it was asked for.
    pub outcome: Option<String>,
}

impl Store {
    /// Holds that have not ended.
    ///
    /// # Errors
    /// As the database says.
    pub async fn provider_holds(&self) -> Result<Vec<ProviderHold>, StoreError> {
        let rows = sqlx::query(
            "SELECT kind, provider, machine, location, until, why FROM ops.provider_holds WHERE until > now()",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("read what providers are not asked for"))?;
        rows.iter()
            .map(|row| {
                let kind: String = get(row, 0)?;
                Ok(ProviderHold {
                    kind: if kind == "rate_limit" { HoldKind::RateLimit } else { HoldKind::OutOfStock },
                    provider: get(row, 1)?,
                    machine: get(row, 2)?,
                    location: get(row, 3)?,
                    until: time(row, 4)?,
                    why: get(row, 5)?,
                })
            })
            .collect()
    }

    /// Remembers that a provider is not to be asked, beyond this leader. The later end counts.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when a newer leader has taken over; else as the database says.
    pub async fn hold_provider(&self, tenure: &Tenure, hold: &ProviderHold) -> Result<(), StoreError> {
        const TRIED: &str = "remember what a provider is not asked for";
        let term = tenure.check()?;
        let row = sqlx::query(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             old AS (DELETE FROM ops.provider_holds USING leader WHERE until < now() - interval '1 day'), \
             held AS ( \
                 INSERT INTO ops.provider_holds AS h (kind, provider, machine, location, until, why) \
                 SELECT $3, $4, $5, $6, $7, $8 FROM leader \
                 ON CONFLICT (kind, provider, machine, location) \
                 DO UPDATE SET until = GREATEST(h.until, EXCLUDED.until), why = EXCLUDED.why) \
             SELECT EXISTS (SELECT FROM leader)",
        )
        .bind(&*term.name)
        .bind(term.number)
        .bind(hold.kind.as_str())
        .bind(&hold.provider)
        .bind(&hold.machine)
        .bind(&hold.location)
        .bind(hold.until.to_sqlx())
        .bind(&hold.why)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        if get::<bool>(&row, 0)? {
            return Ok(());
        }
        term::refused(term, "provider.hold");
        Err(StoreError::Fenced { tried: TRIED })
    }

    /// What the rows know of the servers that these operations made; one that is missing made none.
    ///
    /// # Errors
    /// As the database says.
    pub async fn makers(&self, operations: &[Uuid]) -> Result<HashMap<Uuid, Maker>, StoreError> {
        let rows = sqlx::query(
            "SELECT s.made_by, s.provider_id, s.gone_at IS NOT NULL, \
                    extract(epoch FROM clock_timestamp() - s.gone_at)::float8, o.kind = 'down', \
                    COALESCE(o.reason = 'ghost' OR o.error_code = 'vanished', false) \
             FROM ops.servers s LEFT JOIN LATERAL ( \
                 SELECT kind, reason, error_code FROM ops.operations o WHERE o.server_id = s.id \
                 ORDER BY created_at DESC, id DESC LIMIT 1) o ON true \
             WHERE s.made_by = ANY($1)",
        )
        .bind(operations)
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("look for the makers of listed servers"))?;
        rows.iter()
            .map(|row| {
                let maker = if get::<bool>(row, 2)? {
                    let how = match (get::<bool>(row, 5)?, get::<Option<bool>>(row, 4)?) {
                        (true, _) | (_, None) => End::Vanished,
                        (false, Some(true)) => End::Deleted,
                        (false, Some(false)) => End::NeverServed,
                    };
                    let since = get::<Option<f64>>(row, 3)?.unwrap_or(0.0);
                    let since = SignedDuration::try_from_secs_f64(since).unwrap_or(SignedDuration::ZERO);
                    Maker::Ended { how, since }
                } else {
                    Maker::Lives { provider_id: get(row, 1)? }
                };
                Ok((get(row, 0)?, maker))
            })
            .collect()
    }

    /// Notes that these orphans were seen at `at`. Returns how many sweeps in a row have seen each, by the provider's id; two
    /// sightings less than half of `every` apart are one.
    ///
    /// # Errors
    /// As [`Store::hold_provider`].
    pub async fn sight_orphans(
        &self,
        tenure: &Tenure,
        provider: &str,
        at: Timestamp,
        every: SignedDuration,
        orphans: &[NewOrphan],
    ) -> Result<HashMap<String, u32>, StoreError> {
        const TRIED: &str = "note orphans";
        let term = tenure.check()?;
        let column = |of: fn(&NewOrphan) -> String| orphans.iter().map(of).collect::<Vec<_>>();
        let operations: Vec<Option<Uuid>> = orphans.iter().map(|orphan| orphan.operation).collect();
        let rows = sqlx::query(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             seen AS ( \
                 INSERT INTO ops.orphans AS o \
                     (provider, provider_id, name, group_name, operation, first_seen, last_seen, verdict) \
                 SELECT $3, n.*, $4, $4, 'wait' FROM leader, unnest($5::text[], $6::text[], $7::text[], $8::uuid[]) AS n \
                 ON CONFLICT (provider, provider_id) DO UPDATE SET name = EXCLUDED.name, \
                     group_name = EXCLUDED.group_name, operation = EXCLUDED.operation, last_seen = $4, \
                     sightings = o.sightings + CASE WHEN $4 - o.last_seen >= make_interval(secs => $9 / 2) THEN 1 ELSE 0 END \
                 RETURNING provider_id, sightings) \
             SELECT (SELECT count(*) FROM leader), provider_id, sightings \
             FROM (SELECT NULL AS x) one LEFT JOIN seen ON true",
        )
        .bind(&*term.name)
        .bind(term.number)
        .bind(provider)
        .bind(at.to_sqlx())
        .bind(column(|orphan| orphan.provider_id.clone()))
        .bind(column(|orphan| orphan.name.clone()))
        .bind(column(|orphan| orphan.group.clone()))
        .bind(operations)
        .bind(every.as_secs_f64())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        let mut sightings = HashMap::new();
        for row in &rows {
            if get::<i64>(row, 0)? == 0 {
                term::refused(term, "orphans.note");
                return Err(StoreError::Fenced { tried: TRIED });
            }
            if let Some(id) = get::<Option<String>>(row, 1)? {
                sightings.insert(id, u32::try_from(get::<i32>(row, 2)?).unwrap_or(0));
            }
        }
        Ok(sightings)
    }

    /// Writes what is done about an orphan, and tells people of it.
    ///
    /// # Errors
    /// As [`Store::hold_provider`].
    pub async fn judge_orphan(
        &self,
        tenure: &Tenure,
        (provider, provider_id): (&str, &str),
        judgement: &Judgement<'_>,
    ) -> Result<(), StoreError> {
        const TRIED: &str = "write what is done about an orphan";
        let term = tenure.check()?;
        let notices: Columns = judgement.notice.iter().collect();
        let row = sqlx::query(concat!(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             judged AS ( \
                 UPDATE ops.orphans SET verdict = $5, asked_at = CASE WHEN $6 THEN now() ELSE asked_at END, \
                     outcome = COALESCE($7, outcome) \
                 FROM leader WHERE provider = $3 AND provider_id = $4), ",
            enqueue_notices!("leader", "$8", "$9"),
            "SELECT EXISTS (SELECT FROM leader)",
        ))
        .bind(&*term.name)
        .bind(term.number)
        .bind(provider)
        .bind(provider_id)
        .bind(judgement.verdict)
        .bind(judgement.asking)
        .bind(judgement.outcome)
        .bind(notices.ids)
        .bind(notices.payloads)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database(TRIED))?;
        if get::<bool>(&row, 0)? {
            return Ok(());
        }
        term::refused(term, "orphans.judge");
        Err(StoreError::Fenced { tried: TRIED })
    }

    /// Forgets the orphans of a provider whose whole list, made at or after `before`, did not hold them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn forget_orphans(&self, provider: &str, before: Timestamp) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM ops.orphans WHERE provider = $1 AND last_seen < $2")
            .bind(provider)
            .bind(before.to_sqlx())
            .execute(&self.pool)
            .await
            .map_err(StoreError::database("forget orphans"))?;
        Ok(())
    }

    /// Every orphan that is remembered, by name.
    ///
    /// # Errors
    /// As the database says.
    pub async fn orphans(&self) -> Result<Vec<OrphanRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT provider, provider_id, name, group_name, operation, first_seen, last_seen, verdict, outcome \
             FROM ops.orphans ORDER BY name, provider, provider_id LIMIT 1000",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("read the orphans"))?;
        rows.iter()
            .map(|row| {
                Ok(OrphanRow {
                    provider: get(row, 0)?,
                    provider_id: get(row, 1)?,
                    name: get(row, 2)?,
                    group: get(row, 3)?,
                    operation: get(row, 4)?,
                    first_seen: time(row, 5)?,
                    last_seen: time(row, 6)?,
                    verdict: get(row, 7)?,
                    outcome: get(row, 8)?,
                })
            })
            .collect()
    }
}
