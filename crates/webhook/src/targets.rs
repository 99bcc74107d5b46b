//! Endpoints that were claimed for lately, as they were then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgConnection, Row};
use voiceai_runtime::Secret;

use crate::WebhookSettings;
use crate::signature::Keys;

/// Longest time that an endpoint is kept, and how many are.
const KEPT: Duration = Duration::from_secs(60);
const MOST: usize = 10_000;

/// An endpoint as its deliveries need it, made once for all of them.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) id: Uuid,
    /// In words, why nothing can be posted to it.
    pub(crate) place: Result<(Url, Keys), String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) tenant: Arc<str>,
    /// How many posts it takes at once.
    pub(crate) concurrency: usize,
}

/// By id. One that was changed since, and one whose secret ran out, is read again.
#[derive(Debug, Default)]
pub(crate) struct Targets(HashMap<Uuid, Kept>);

#[derive(Debug)]
struct Kept {
    target: Arc<Target>,
    version: Timestamp,
    until: Instant,
}

impl Targets {
    /// As it was when it was last refreshed; none, when it was removed before.
    pub(crate) fn get(&self, id: Uuid) -> Option<&Arc<Target>> {
        self.0.get(&id).map(|kept| &kept.target)
    }

    /// Reads those of `seen` that are not known in this version.
    pub(crate) async fn refresh(
        &mut self,
        connection: &mut PgConnection,
        seen: &[(Uuid, Timestamp)],
        settings: &WebhookSettings,
    ) -> Result<(), sqlx::Error> {
        // Room is made before: those of one look are all needed.
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let now = Instant::now();
        let known = |id, version| {
            self.0.get(&id).is_some_and(|kept: &Kept| kept.version == version && kept.until > now)
        };
        let unknown: HashSet<Uuid> =
            seen.iter().filter(|(id, version)| !known(*id, *version)).map(|(id, _)| *id).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(TARGETS).bind(Vec::from_iter(unknown)).fetch_all(connection).await?;
        for row in &rows {
            let (target, version, left) = read(row, settings)?;
            let kept = Kept { target: Arc::new(target), version, until: now + left.min(KEPT) };
            self.0.insert(kept.target.id, kept);
        }
        Ok(())
    }
}

/// An endpoint, its version, and how long its secrets stay as they are.
fn read(row: &PgRow, settings: &WebhookSettings) -> Result<(Target, Timestamp, Duration), sqlx::Error> {
    let (id, url, secrets): (Uuid, String, Option<Vec<String>>) =
        (row.try_get(0)?, row.try_get(2)?, row.try_get(4)?);
    let timeout: Option<i32> = row.try_get(3)?;
    let place = Url::parse(&url).map_err(|error| format!("the URL: {error}")).and_then(|url| {
        let keys = Keys::new(secrets.unwrap_or_default().into_iter().map(Secret::new).collect());
        keys.map(|keys| (url, keys)).map_err(|error| format!("nothing can be signed: {error}"))
    });
    let timeout = timeout.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
    let left: Option<f64> = row.try_get(5)?;
    let left = left.map_or(KEPT, |left| Duration::try_from_secs_f64(left).unwrap_or_default());
    let tenant: String = row.try_get(6)?;
    let own: Option<i32> = row.try_get(7)?;
    let concurrency = own.and_then(|own| u32::try_from(own).ok()).unwrap_or(settings.endpoint_concurrency);
    let concurrency = usize::try_from(concurrency).unwrap_or(usize::MAX);
    let version = row.try_get::<SqlTimestamp, _>(1)?.to_jiff();
    Ok((Target { id, place, timeout, tenant: tenant.into(), concurrency }, version, left))
}

const TARGETS: &str = "\
SELECT e.id, e.updated_at, e.url, e.timeout_ms, s.secrets, s.seconds, e.tenant, e.concurrency
FROM ops.webhook_endpoints e, LATERAL (
    SELECT array_agg(s.secret ORDER BY s.number DESC) AS secrets,
        extract(epoch FROM min(s.expires_at) - clock_timestamp())::float8 AS seconds
    FROM ops.webhook_secrets s WHERE s.endpoint_id = e.id AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())) s
WHERE e.id = ANY($1)";
