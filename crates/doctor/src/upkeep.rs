//! What other parts of the tasker leave in PostgreSQL: mail that waits, the newest metric, the watched services. A part that is
//! not set up has no table, or no row.

use std::time::Duration;

use url::Url;
use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_config::Resolved;
use voiceai_egress::{Rule, http_client};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_service::failures;

use crate::{BOUND, Stores};

/// Mail that is due and waits for longer is late; for much longer, nobody sends.
const MAIL_LATE: f64 = 5.0 * 60.0;
const MAIL_STUCK: f64 = 60.0 * 60.0;
/// The collector runs every few seconds.
const METRIC_OLD: f64 = 5.0 * 60.0;
const SERVICE_WITHIN: Duration = Duration::from_secs(5);

pub(crate) fn add(doctor: &mut Doctor, stores: &Stores, resolved: &Resolved, way: &Rule) {
    let of = stores.clone();
    doctor.check("mail.backlog", BOUND, async move { asked(&of, "mail.attempts", mail).await });
    let of = stores.clone();
    doctor.check("metrics.newest", BOUND, async move { asked(&of, "ops.system_metrics", newest).await });
    let (urls, way) = (watched(resolved), way.clone());
    doctor.check("services.watched", BOUND, async move { services(urls, &way).await });
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

/// Every setting that names a service's health by URL.
fn watched(resolved: &Resolved) -> Vec<(String, String)> {
    let named = resolved.resolutions().filter(|(name, _)| name.ends_with("_HEALTH_URL"));
    named.filter_map(|(name, found)| Some((name, found.winner.as_ref()?.value.expose().to_owned()))).collect()
}

async fn services(urls: Vec<(String, String)>, way: &Rule) -> Finding {
    if urls.is_empty() {
        return Finding::skipped("not set up: no service is watched");
    }
    let client = match http_client(way).timeout(SERVICE_WITHIN).build() {
        Ok(client) => client,
        Err(error) => return Finding::failed(error.to_string(), "Report this."),
    };
    let mut asking = tokio::task::JoinSet::new();
    for (name, url) in urls {
        let client = client.clone();
        asking.spawn(async move {
            // Only where it is: a URL may carry a login.
            let host =
                Url::parse(&url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
            match client.get(&url).send().await {
                Ok(answer) if answer.status().is_server_error() => {
                    Err(format!("{name}: {host} answers {}", answer.status().as_u16()))
                }
                Ok(answer) => Ok(format!("{name} answers {}", answer.status().as_u16())),
                Err(error) if error.is_timeout() => Err(format!("{name}: {host} gives no answer in time")),
                Err(_) => Err(format!("{name}: {host} cannot be reached")),
            }
        });
    }
    let (mut well, mut ill) = (Vec::new(), Vec::new());
    for answer in asking.join_all().await {
        match answer {
            Ok(line) => well.push(line),
            Err(line) => ill.push(line),
        }
    }
    well.sort_unstable();
    ill.sort_unstable();
    if ill.is_empty() {
        return Finding::ok(well.join("; "));
    }
    Finding::failed(
        ill.join("; "),
        "Look at the service; or correct the URL; NO_PROXY must name it where it is internal.",
    )
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Verdict;
    use voiceai_testkit::{AwsFault, AwsFaults, empty_database};

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
    async fn a_watched_service_that_is_ill_is_named_without_its_login() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (well, ill) = (AwsFaults::before(1).await, AwsFaults::before(1).await);
        well.set("GET /health", Some(AwsFault::Answer(200, String::new())));
        ill.set("GET /health", Some(AwsFault::Answer(503, String::new())));
        let url = |server: &AwsFaults| server.endpoint().replace("http://", "http://ops:canary@") + "/health";
        let of = |name: &str, url: String| (name.to_owned(), url);
        let way = Rule::default();
        assert_eq!(services(Vec::new(), &way).await.verdict(), Verdict::Skipped);
        let found = services(vec![of("INGEST_HEALTH_URL", url(&well))], &way).await;
        assert_eq!(found.verdict(), Verdict::Ok, "{found:?}");
        let away = of("C_HEALTH_URL", "http://127.0.0.1:1/".to_owned());
        let found =
            services(vec![of("A_HEALTH_URL", url(&well)), of("B_HEALTH_URL", url(&ill)), away], &way).await;
        for part in ["B_HEALTH_URL: 127.0.0.1 answers 503", "C_HEALTH_URL: 127.0.0.1 cannot be reached"] {
            assert!(found.evidence().contains(part), "{found:?}");
        }
        assert!(
            !found.evidence().contains("A_HEALTH_URL") && !format!("{found:?}").contains("canary"),
            "{found:?}"
        );
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
