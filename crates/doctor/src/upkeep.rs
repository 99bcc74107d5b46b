//! What other parts of the tasker leave in PostgreSQL: mail that waits, the newest figure. A part that is not set up has no
//! table, or no row.

use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_service::failures;

use crate::{BOUND, Stores};

/// Mail that is due and waits for longer is late; for much longer, nobody sends.
const MAIL_LATE: f64 = 5.0 * 60.0;
const MAIL_STUCK: f64 = 60.0 * 60.0;
/// The collector runs every few seconds.
const METRIC_OLD: f64 = 5.0 * 60.0;

pub(crate) fn add(doctor: &mut Doctor, stores: &Stores) {
    let of = stores.clone();
    doctor.check("mail.backlog", BOUND, async move { asked(&of, "mail.attempts", mail).await });
    let of = stores.clone();
    doctor.check("metrics.newest", BOUND, async move { asked(&of, "ops.system_metrics", newest).await });
}

async fn asked(
    stores: &Stores,
    table: &'static str,
    look: impl AsyncFnOnce(PgPool) -> Result<Finding, sqlx::Error>,
) -> Finding {
    let pool = match stores.pool().await {
        Ok(pool) => pool,
        Err(skipped) => return skipped,
    };
    let there = sqlx::query_scalar::<_, bool>("SELECT to_regclass($1) IS NOT NULL").bind(table);
    let looked = match there.fetch_one(&pool).await {
        Ok(true) => look(pool).await,
        Ok(false) => return Finding::skipped(format!("not set up: there is no table {table}")),
        Err(error) => Err(error),
    };
    looked.unwrap_or_else(|error| {
        let failure = failures::database(&error);
        Finding::failed(failure.message, failure.remedy)
    })
}

async fn mail(pool: PgPool) -> Result<Finding, sqlx::Error> {
    let row = sqlx::query(
        "SELECT count(*), COALESCE(extract(epoch FROM max(clock_timestamp() - due_at)), 0)::float8
         FROM mail.attempts WHERE status = 'scheduled' AND due_at <= clock_timestamp()",
    );
    let row = row.fetch_one(&pool).await?;
    Ok(judge_mail(row.try_get(0)?, row.try_get(1)?))
}

fn judge_mail(due: i64, oldest: f64) -> Finding {
    if due == 0 {
        return Finding::ok("no mail is due");
    }
    let evidence = format!("{due} mails are due, the oldest for {oldest:.0} s");
    let remedy =
        "Is a tasker running, and sending not paused? See `mail list`, and smtp.greeting or ses.quota here.";
    if oldest >= MAIL_STUCK {
        Finding::failed(evidence, remedy)
    } else if oldest >= MAIL_LATE {
        Finding::warning(evidence, remedy)
    } else {
        Finding::ok(evidence)
    }
}

async fn newest(pool: PgPool) -> Result<Finding, sqlx::Error> {
    let age = sqlx::query_scalar::<_, Option<f64>>(
        "SELECT extract(epoch FROM clock_timestamp() - max(time))::float8 FROM ops.system_metrics",
    );
    Ok(judge_metric(age.fetch_one(&pool).await?))
}

fn judge_metric(age: Option<f64>) -> Finding {
    match age {
        None => Finding::skipped("not set up: ops.system_metrics holds nothing"),
        Some(age) if age > METRIC_OLD => Finding::warning(
            format!("the newest point is {age:.0} s old"),
            "The leading tasker collects them: see `leader.key` here and the tasker's log.",
        ),
        Some(age) => Finding::ok(format!("the newest point is {:.0} s old", age.max(0.0))),
    }
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Verdict;
    use voiceai_testkit::empty_database;

    use super::*;

    #[test]
    fn late_mail_and_old_metrics_are_told() {
        for (due, oldest, verdict) in [
            (0, 0.0, Verdict::Ok),
            (5, 299.0, Verdict::Ok),
            (5, 300.0, Verdict::Warning),
            (5, 3600.0, Verdict::Failed),
        ] {
            assert_eq!(judge_mail(due, oldest).verdict(), verdict, "{oldest}");
        }
        for (age, verdict) in [
            (None, Verdict::Skipped),
            (Some(-1.0), Verdict::Ok),
            (Some(300.0), Verdict::Ok),
            (Some(301.0), Verdict::Warning),
        ] {
            assert_eq!(judge_metric(age).verdict(), verdict, "{age:?}");
        }
    }

    #[tokio::test]
    async fn the_tables_are_read_as_they_are_made() {
        let database = empty_database().await;
        let pool = PgPool::connect(&database.url).await.unwrap();
        database
            .execute(
                "CREATE SCHEMA ops; CREATE TABLE ops.system_metrics (time timestamptz, metric_name text)",
            )
            .await;
        assert_eq!(newest(pool.clone()).await.unwrap().verdict(), Verdict::Skipped);
        database.execute("INSERT INTO ops.system_metrics VALUES (now() - interval '1 hour', 'x')").await;
        let found = newest(pool).await.unwrap();
        assert!(found.verdict() == Verdict::Warning && found.evidence().contains("3600 s old"), "{found:?}");
    }
}
