//! `newsletter.segments`: who belongs to each dynamic segment now.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgConnection};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use super::criteria::{Condition, condition};
use crate::error::PlatformError;
use crate::tables::Needs;
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, begin, check_stop};

const LIMIT: Duration = Duration::from_secs(600);
/// The segment in its own type, whose id `$1` is as text.
const ID: &str = "(SELECT id FROM newsletter_segments WHERE id::text = $1)";

/// Computes every dynamic segment anew. Segments that are kept by hand are only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewsletterSegments {}

impl Job for NewsletterSegments {
    const KIND: &'static str = "newsletter.segments";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3_600);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            ("newsletter_subscribers", &["id", "status"]),
            (
                "newsletter_segments",
                &["id", "slug", "criteria", "is_dynamic", "subscriber_count", "last_computed_at"],
            ),
            ("newsletter_segment_members", &["segment_id", "subscriber_id"]),
        ]);
        upkeep.finish(Self::KIND, NEEDS, update(upkeep, attempt)).await
    }
}

async fn update(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let mut session = upkeep.session(LIMIT).await?;
    let segments: Vec<(String, String, Option<Value>, bool)> = sqlx::query_as(
        "SELECT id::text, COALESCE(slug::text, id::text), criteria, COALESCE(is_dynamic, false) FROM newsletter_segments ORDER BY slug",
    )
    .fetch_all(&mut session)
    .await
    .map_err(PlatformError::database("read the segments"))?;
    let (mut updated, mut joined, mut left, mut refused) = (0_u64, 0_u64, 0_u64, Vec::new());
    for (id, slug, criteria, is_dynamic) in segments {
        check_stop(attempt)?;
        if !is_dynamic {
            count(&mut session, &id).await?;
            updated += 1;
            continue;
        }
        let done = match condition(&criteria.unwrap_or_default()) {
            Ok(condition) => match members(&mut session, &id, &condition).await {
                Err(error) if error.is_final() => Err(crate::text(&error)),
                done => Ok(done?),
            },
            Err(reason) => Err(reason),
        };
        match done {
            Ok((in_, out)) => {
                joined += in_;
                left += out;
                updated += 1;
            }
            // Its members stay as they are: no criteria is not "nobody", and not "everybody".
            Err(reason) => {
                tracing::warn!(segment = slug, reason, "a segment cannot be computed");
                refused.push(json!({ "slug": slug, "reason": reason }));
            }
        }
    }
    Ok(json!({ "updated": updated, "joined": joined, "left": left, "refused": refused }))
}

/// Members that stay keep their row, and with it the moment they joined.
async fn members(
    session: &mut PgConnection,
    id: &str,
    condition: &Condition,
) -> Result<(u64, u64), PlatformError> {
    let tried = "compute a segment";
    let Condition { sql, values } = condition;
    let mut transaction = begin(session, tried).await?;
    let mut changed = [0; 2];
    let statements = [
        format!(
            "DELETE FROM newsletter_segment_members m WHERE m.segment_id = {ID} AND NOT EXISTS \
                 (SELECT FROM newsletter_subscribers s WHERE s.id = m.subscriber_id AND {sql})"
        ),
        format!(
            "INSERT INTO newsletter_segment_members (segment_id, subscriber_id) \
             SELECT {ID}, s.id FROM newsletter_subscribers s WHERE {sql} ON CONFLICT DO NOTHING"
        ),
    ];
    for (changed, statement) in changed.iter_mut().zip(statements) {
        let mut query = sqlx::query(AssertSqlSafe(statement)).bind(id);
        for value in values {
            query = query.bind(value);
        }
        let done = query.execute(&mut *transaction).await.map_err(PlatformError::database(tried))?;
        *changed = done.rows_affected();
    }
    count(&mut transaction, id).await?;
    transaction.commit().await.map_err(PlatformError::database(tried))?;
    Ok((changed[1], changed[0]))
}

async fn count(session: &mut PgConnection, id: &str) -> Result<(), PlatformError> {
    let sql = format!(
        "UPDATE newsletter_segments SET last_computed_at = now(), subscriber_count = \
             (SELECT count(*) FROM newsletter_segment_members WHERE segment_id = {ID}) WHERE id = {ID}"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(id)
        .execute(session)
        .await
        .map_err(PlatformError::database("count a segment's members"))?;
    Ok(())
}
