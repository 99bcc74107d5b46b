//! `doctor`: what can be wrong with the tasker's own parts. Each check looks and changes nothing.

use futures_util::{StreamExt as _, stream};
use voiceai_cli::ExitCode;
use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_doctor::{BOUND, Stores};
use voiceai_monitor::{Service, State};
use voiceai_postgres::sqlx::{self, Row};
use voiceai_queue::{Client, QueueStats, outbox};

use super::{doctor_certificates, doctor_queues, doctor_recording, doctor_webhooks};
use crate::IDENTITY;
use crate::jobs::backup;
use crate::operate::queues;
use crate::operate::status::schedules_in_short;
use crate::run::monitor;
use crate::settings::TaskerSettings;

/// A waiting job that is older than this while its queue is not paused is worth a look.
const OLD_MS: u64 = 15 * 60 * 1_000;
/// A proof that is older than this: a nightly backup was missed, or nobody proves them.
const PROOF_OLD_SECONDS: i64 = 26 * 60 * 60;
/// So many services that are ill are named.
const SERVICES_SHOWN: usize = 10;

pub(super) async fn run(json: bool) -> ExitCode {
    Box::pin(voiceai_doctor::run(IDENTITY, json, TaskerSettings::read, add)).await
}

fn add(doctor: &mut Doctor, stores: &Stores, settings: &TaskerSettings) {
    doctor.check("queue.workers", BOUND, on_queues(stores, judge_workers));
    doctor.check("queue.backlog", BOUND, on_queues(stores, judge_backlog));
    doctor.check("queue.concurrency", BOUND, on_queues(stores, doctor_queues::judge_concurrency));
    doctor.check("queue.stalled", BOUND, on_queues(stores, doctor_queues::judge_stalled));
    doctor.check("queue.finished_memory", BOUND, doctor_queues::finished_memory(stores.clone()));
    doctor.check("queue.dead", BOUND, on_queues(stores, judge_dead));
    doctor.check("outbox", BOUND, check_outbox(stores.clone()));
    doctor.check("webhook.endpoints", BOUND, doctor_webhooks::check_endpoints(stores.clone()));
    doctor.check("webhook.backlog", BOUND, doctor_webhooks::check_backlog(stores.clone()));
    doctor.check("schedules", BOUND, check_schedules(stores.clone()));
    doctor.check("backup.bucket", BOUND, check_bucket(settings.clone()));
    doctor.check("backup.tools", BOUND, check_tools(stores.clone(), settings.store.is_some()));
    doctor.check("services.watched", BOUND, check_services(settings.clone()));
    doctor.check("recording.tools", BOUND, doctor_recording::tools(settings.recording.is_enabled()));
    doctor.check("recording.bucket", BOUND, doctor_recording::bucket(settings.recording.clone()));
    doctor.check(
        "recording.backlog",
        BOUND,
        doctor_recording::backlog(stores.clone(), settings.recording.clone()),
    );
    let certificates = settings.duties.certificates.clone();
    doctor.check("certificates", BOUND, doctor_certificates::check(stores.clone(), certificates));
    doctor.check("backup.age", BOUND, check_age(stores.clone(), settings.store.is_some()));
}

/// Looks at every queue and lets `judge` decide.
fn on_queues(
    stores: &Stores,
    judge: fn(&[QueueStats]) -> Finding,
) -> impl Future<Output = Finding> + Send + 'static {
    let stores = stores.clone();
    async move {
        let redis = match stores.redis().await {
            Ok(redis) => redis,
            Err(finding) => return finding,
        };
        let looked = async {
            let client =
                Client::connect(redis).await.map_err(|error| crate::operate::queue_failure(&error))?;
            let names = queues::names(&client).await?;
            queues::look(&client, &names).await
        };
        match looked.await {
            Ok(all) => judge(&all),
            Err(failure) => Finding::failed(failure.message, failure.remedy),
        }
    }
}

fn judge_workers(all: &[QueueStats]) -> Finding {
    let without: Vec<_> =
        all.iter().filter(|queue| queue.workers.is_empty()).map(|q| q.queue.as_str()).collect();
    match (without.len(), all.len()) {
        (0, all) => Finding::ok(format!("all {all} queues have live workers")),
        (none, all) if none == all => {
            Finding::warning("no worker is alive", "Start `voiceai-tasker run`, or look at its log.")
        }
        _ => Finding::warning(
            format!("no live worker serves {}", without.join(", ")),
            "Restart a tasker if the queue is still needed.",
        ),
    }
}

fn judge_backlog(all: &[QueueStats]) -> Finding {
    let paused: Vec<_> =
        all.iter().filter(|queue| queue.paused || queue.draining).map(|q| q.queue.as_str()).collect();
    let old: Vec<_> = all
        .iter()
        .filter(|queue| !queue.paused && queue.oldest_waiting_ms.is_some_and(|ms| ms > OLD_MS))
        .map(|queue| format!("{} ({} waiting)", queue.queue, queue.waiting))
        .collect();
    if !old.is_empty() {
        let evidence = format!("jobs wait for more than 15 minutes in {}", old.join(", "));
        return Finding::warning(evidence, "Ask `jobs show ID` why one of them is not running.");
    }
    if paused.is_empty() {
        return Finding::ok("no job waits for longer than 15 minutes");
    }
    Finding::warning(
        format!("paused or draining: {}", paused.join(", ")),
        "End it with `queue resume`, if it is not wanted any more.",
    )
}

fn judge_dead(all: &[QueueStats]) -> Finding {
    let dead: Vec<_> = all
        .iter()
        .filter(|queue| queue.dead > 0)
        .map(|queue| format!("{} in {}", queue.dead, queue.queue))
        .collect();
    if dead.is_empty() {
        return Finding::ok("no job was given up");
    }
    let evidence = format!("given up: {}", dead.join(", "));
    Finding::warning(
        evidence,
        "See `jobs list --state dead`; heal the cause, then `jobs replay` or `jobs discard`.",
    )
}

async fn check_outbox(stores: Stores) -> Finding {
    let pool = match stores.pool().await {
        Ok(pool) => pool,
        Err(finding) => return finding,
    };
    let waiting = match outbox::waiting(&pool).await {
        Ok(waiting) => waiting,
        Err(error) => {
            return Finding::failed(format!("the outbox cannot be read: {error}"), "Run `migrate` once.");
        }
    };
    let refused: Vec<_> =
        waiting.iter().filter(|row| row.refused > 0).map(|row| row.queue.as_str()).collect();
    if !refused.is_empty() {
        let evidence = format!("rows that their queue refuses: {}", refused.join(", "));
        return Finding::failed(
            evidence,
            "Look at last_error in ops.outbox, and correct or delete these rows.",
        );
    }
    let late: Vec<_> = waiting
        .iter()
        .filter(|row| row.waiting > 0 && row.oldest_seconds > 60)
        .map(|row| format!("{} for {} ({} s)", row.waiting, row.queue, row.oldest_seconds))
        .collect();
    if late.is_empty() {
        return Finding::ok("nothing waits for longer than a minute");
    }
    let evidence = format!("waiting for more than a minute: {}", late.join(", "));
    Finding::warning(evidence, "Start a tasker; check Redis, and whether the queue's producers are paused.")
}

async fn check_schedules(stores: Stores) -> Finding {
    let pool = match stores.pool().await {
        Ok(pool) => pool,
        Err(finding) => return finding,
    };
    let short = match schedules_in_short(&pool).await {
        Ok(short) => short,
        Err(failure) => return Finding::failed(failure.message, failure.remedy),
    };
    if !short.malformed.is_empty() {
        let evidence = format!("malformed: {}", short.malformed.join(", "));
        return Finding::failed(evidence, "Correct them with `cron set`; `cron list` says what is wrong.");
    }
    if !short.overdue.is_empty() {
        let evidence = format!("overdue: {}", short.overdue.join(", "));
        return Finding::failed(evidence, "No leader fires schedules: see `status`.");
    }
    if !short.failing.is_empty() {
        let evidence = format!("the last run failed: {}", short.failing.join(", "));
        return Finding::warning(evidence, "See `cron list` for the error.");
    }
    Finding::ok(format!("{} schedules, none overdue", short.total))
}

async fn check_bucket(settings: TaskerSettings) -> Finding {
    let Some(store) = &settings.store else { return Finding::skipped("S3_BUCKET is not set") };
    let store = voiceai_aws::ObjectStore::new(store).await;
    let tried = async {
        store.check().await?;
        // Only a write proves that one may write; it is taken away again.
        let key = format!("{}.doctor-{}", prefix_of(&settings), uuid::Uuid::now_v7());
        store.put_small(&key, "written by doctor".into(), "text/plain").await?;
        store.delete(&key).await
    };
    match tried.await {
        Ok(()) => Finding::ok(format!("s3://{} can be read and written", store.bucket())),
        Err(error) => Finding::failed(error.to_string(), error.kind().remedy()),
    }
}

fn prefix_of(settings: &TaskerSettings) -> String {
    let prefix = settings.store.as_ref().map_or("", |store| store.prefix.as_str());
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

async fn check_tools(stores: Stores, has_bucket: bool) -> Finding {
    if !has_bucket {
        return Finding::skipped("S3_BUCKET is not set");
    }
    let remedy = "Install the PostgreSQL client of the server's major version, or a newer one.";
    let pool = match stores.pool().await {
        Ok(pool) => pool,
        Err(finding) => return finding,
    };
    let asked =
        sqlx::query("SELECT current_setting('server_version_num')::int / 10000").fetch_one(&pool).await;
    let server: i32 = match asked.and_then(|row| row.try_get(0)) {
        Ok(server) => server,
        Err(error) => {
            return Finding::failed(
                format!("the server's version cannot be read: {error}"),
                "Check PostgreSQL.",
            );
        }
    };
    match backup::Tools::default().newest_pair(server.unsigned_abs()).await {
        Ok((dump, restore)) => {
            Finding::ok(format!("pg_dump {dump} and pg_restore {restore} for server {server}"))
        }
        Err(error) => Finding::failed(error.to_string(), remedy),
    }
}

/// Asks the watched services as the monitor does, but from here: that is the way to find out whether it is they, or the way.
async fn check_services(settings: TaskerSettings) -> Finding {
    let services = &settings.monitor.services;
    if services.is_empty() {
        return Finding::skipped("not set up: no service is watched");
    }
    let prober = match monitor::prober(&settings) {
        Ok(prober) => prober,
        Err(failure) => return Finding::failed(failure.message, failure.remedy),
    };
    let ask = |service: Service| {
        let prober = prober.clone();
        async move {
            let seen = prober.ask(&service).await;
            let note = seen.note.unwrap_or_default();
            (seen.state, format!("{} ({}): {} {note}", service.name(), service.shown(), seen.state.word()))
        }
    };
    let asking = stream::iter(services.clone()).map(ask).buffer_unordered(settings.monitor.concurrency);
    let mut ill: Vec<String> =
        asking.filter_map(async |(state, line)| (state != State::Healthy).then_some(line)).collect().await;
    if ill.is_empty() {
        return Finding::ok(format!("{} watched, all healthy", services.len()));
    }
    ill.sort_unstable();
    let more = ill.len().saturating_sub(SERVICES_SHOWN);
    ill.truncate(SERVICES_SHOWN);
    let mut evidence = ill.join("; ");
    if more > 0 {
        evidence.push_str(&format!("; and {more} more"));
    }
    Finding::failed(
        evidence,
        "Look at the service; or correct its URL; NO_PROXY must name it where it is internal.",
    )
}

async fn check_age(stores: Stores, has_bucket: bool) -> Finding {
    if !has_bucket {
        return Finding::skipped("S3_BUCKET is not set");
    }
    let pool = match stores.pool().await {
        Ok(pool) => pool,
        Err(finding) => return finding,
    };
    let newest = match backup::newest(&pool).await {
        Ok(newest) => newest,
        Err(error) => {
            return Finding::failed(format!("the backups cannot be read: {error}"), "Run `migrate` once.");
        }
    };
    let now = jiff::Timestamp::now();
    let age = |at: Option<jiff::Timestamp>| at.map(|at| now.duration_since(at).as_secs());
    match (age(newest.stored_at), age(newest.proved_at)) {
        (None, _) => {
            Finding::failed("there is no backup", "Take one with `backup run`, then `backup verify`.")
        }
        (Some(stored), _) if stored > PROOF_OLD_SECONDS => Finding::failed(
            format!("the newest backup is {} h old", stored / 3600),
            "See `cron list` and `jobs list`.",
        ),
        (_, None) => Finding::warning("no backup is proved by a restore", "Run `backup verify`."),
        (_, Some(proved)) if proved > 7 * 24 * 3600 => {
            Finding::warning(format!("the newest proof is {} h old", proved / 3600), "Run `backup verify`.")
        }
        (Some(stored), Some(_)) => Finding::ok(format!("the newest backup is {} min old", stored / 60)),
    }
}
