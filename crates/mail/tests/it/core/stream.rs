use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use voiceai_mail::intake::Intake;
use voiceai_mail::stream::{Consumer, offset_key};
use voiceai_postgres::term::{Candidate, issue};
use voiceai_postgres::{PgPool, Tenure};
use voiceai_redis::{Redis, RedisSettings};
use voiceai_runtime::{Vitals, boot_now};
use voiceai_testkit::{RedisOptions, RedisServer, wait_for, wait_until};

use super::support::{Bench, SOON};

const STREAM: &str = "mail:delivery_commands";
const AGE: Duration = Duration::from_secs(180 * 86_400);

async fn lead(pool: &PgPool) -> Tenure {
    let candidate = Candidate { service: "voiceai-tasker", name: "tasker", holder: "t", host: "h", pid: 1 };
    let issued = issue(pool, &candidate, 0).await.unwrap();
    Tenure::new(issued.term, boot_now().saturating_add(Duration::from_secs(3600)), false)
}

struct Reader {
    tenure: watch::Sender<Option<Tenure>>,
    stopping: CancellationToken,
    task: JoinHandle<()>,
    _vitals: Vitals,
}

impl Reader {
    fn start(redis: Redis, intake: Intake, age_max: Duration) -> Self {
        let (tenure, watch) = watch::channel(None);
        let (stopping, vitals) = (CancellationToken::new(), Vitals::new());
        let pulse = vitals.register("consumer", Duration::from_secs(60));
        let consumer = Consumer::new(redis, intake, STREAM.to_owned(), age_max);
        let task = tokio::spawn(consumer.run(watch, stopping.clone(), pulse));
        Self { tenure, stopping, task, _vitals: vitals }
    }

    async fn stop(self) {
        self.stopping.cancel();
        tokio::time::timeout(SOON, self.task).await.expect("the consumer stops").unwrap();
    }
}

async fn connect(url: &str) -> Redis {
    Redis::connect(&RedisSettings::from_url(url).unwrap()).await.unwrap()
}

async fn add(redis: &Redis, entry: &str, id: &str, payload: &str) -> String {
    let key = format!("notification:{id}");
    let args = [
        STREAM,
        entry,
        "delivery_id",
        id,
        "source",
        "notification",
        "payload_mode",
        "rendered",
        "idempotency_key",
        &key,
        "requested_at_ms",
        "1790000000000",
        "payload_json",
        payload,
    ];
    wait_for(SOON, "the command is in the stream", async || {
        redis.command::<String>("XADD", args.map(str::to_owned).into()).await
    })
    .await
}

fn payload(to: &str) -> String {
    format!(r#"{{"to":["{to}"],"subject":"s","text_body":"t"}}"#)
}

async fn deliveries(bench: &Bench, count: i64) {
    wait_until(SOON, format!("{count} deliveries"), async || {
        bench.number("SELECT count(*) FROM mail.deliveries").await == count
    })
    .await;
}

async fn offset(redis: &Redis, wanted: &str) {
    wait_for(SOON, format!("the offset is {wanted}"), async || {
        let have = redis.get(offset_key(STREAM)).await.map_err(|error| error.to_string())?;
        if have.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{have:?}")) }
    })
    .await;
}

#[tokio::test]
async fn the_leader_alone_reads_on_from_where_the_last_one_stopped() {
    let bench = Bench::new(&[]).await;
    let database = voiceai_testkit::redis().await;
    let redis = connect(&database.url).await;
    add(&redis, "*", "d-1", &payload("a@example.com")).await;
    let reader = Reader::start(redis.clone(), bench.intake.clone(), AGE);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 0, "it does not lead");
    reader.tenure.send(Some(lead(&bench.pool).await)).unwrap();
    deliveries(&bench, 1).await;
    let last = add(&redis, "*", "d-2", &payload("b@example.com")).await;
    deliveries(&bench, 2).await;
    offset(&redis, &last).await;
    reader.stop().await;
    // Another one begins behind it, and a copy that is read again makes nothing.
    let copy = add(&redis, "*", "d-1", &payload("a@example.com")).await;
    let next = Reader::start(redis.clone(), bench.intake.clone(), AGE);
    next.tenure.send(Some(lead(&bench.pool).await)).unwrap();
    offset(&redis, &copy).await;
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 2);
    assert_eq!(bench.number("SELECT count(*) FROM mail.malformed_commands").await, 0);
    next.stop().await;
}

#[tokio::test]
async fn what_is_rejected_is_recorded_once_and_stops_nothing() {
    let bench = Bench::new(&[]).await;
    let database = voiceai_testkit::redis().await;
    let redis = connect(&database.url).await;
    add(&redis, "*", "d-1", &payload("a@example.com")).await;
    let conflict = add(&redis, "*", "d-1", &payload("other@example.com")).await;
    add(&redis, "*", "d-2", r#"{"to":["a@b\r\nBcc: x@y"],"subject":"s","text_body":"t"}"#).await;
    add(&redis, "*", "d-3", r#"{"to":["a@example.com"],"subject":"s\u0000","text_body":"t"}"#).await;
    redis
        .command::<String>(
            "XADD",
            [STREAM, "*", "delivery_id", "d-4", "nul", "a\0b"].map(str::to_owned).into(),
        )
        .await
        .unwrap();
    let last = add(&redis, "*", "d-5", &payload("c@example.com")).await;
    let reader = Reader::start(redis.clone(), bench.intake.clone(), AGE);
    reader.tenure.send(Some(lead(&bench.pool).await)).unwrap();
    offset(&redis, &last).await;
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 2);
    let listed = voiceai_mail::malformed::list(&bench.pool, None, 10).await.unwrap();
    let mut codes: Vec<_> = listed.iter().map(|row| row.failure_code.as_str()).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["idempotency_conflict", "invalid_address", "invalid_subject", "missing_field"]);
    let first = listed.iter().find(|row| row.failure_code == "idempotency_conflict").unwrap();
    assert_eq!(
        (first.stream_entry_id.as_str(), first.delivery_id.as_deref()),
        (conflict.as_str(), Some("d-1"))
    );
    reader.stop().await;
    // A crash before the offset was saved reads them again.
    redis.del(vec![offset_key(STREAM).into()]).await.unwrap();
    let again = Reader::start(redis.clone(), bench.intake.clone(), AGE);
    again.tenure.send(Some(lead(&bench.pool).await)).unwrap();
    offset(&redis, &last).await;
    assert_eq!(bench.number("SELECT count(*) FROM mail.malformed_commands").await, 4);
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 2);
    again.stop().await;
}

#[tokio::test]
async fn a_former_leader_cannot_move_the_offset() {
    let bench = Bench::new(&[]).await;
    let database = voiceai_testkit::redis().await;
    let redis = connect(&database.url).await;
    let (old, new) = (lead(&bench.pool).await, lead(&bench.pool).await);
    let first = add(&redis, "*", "d-1", &payload("a@example.com")).await;
    let newer = Reader::start(redis.clone(), bench.intake.clone(), AGE);
    newer.tenure.send(Some(new)).unwrap();
    offset(&redis, &first).await;
    newer.stop().await;
    let older = Reader::start(redis.clone(), bench.intake.clone(), AGE);
    add(&redis, "*", "d-2", &payload("b@example.com")).await;
    older.tenure.send(Some(old)).unwrap();
    // What it makes of the command is a row that the next leader will know; the offset stays the newer one's.
    deliveries(&bench, 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    offset(&redis, &first).await;
    older.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_made_anew_is_read_from_its_beginning_and_old_entries_are_not_sent_again() {
    let bench = Bench::new(&[]).await;
    let mut server = RedisServer::start(RedisOptions::default()).await;
    let redis = connect(&server.url()).await;
    let reader = Reader::start(redis.clone(), bench.intake.clone(), AGE);
    reader.tenure.send(Some(lead(&bench.pool).await)).unwrap();
    add(&redis, "*", "d-1", &payload("a@example.com")).await;
    deliveries(&bench, 1).await;
    // Away and back, empty: also the offset is gone, while the reader remembers it.
    server.kill9().await;
    server.restart(true).await;
    add(&redis, "5-1", "d-2", &payload("b@example.com")).await;
    deliveries(&bench, 2).await;
    server.cli(&["FLUSHALL"]).await;
    add(&redis, "4-1", "d-3", &payload("c@example.com")).await;
    deliveries(&bench, 3).await;
    // An entry from long before deliveries are remembered.
    server.cli(&["FLUSHALL"]).await;
    add(&redis, "1500000000000-1", "d-4", &payload("d@example.com")).await;
    wait_until(SOON, "it is rejected", async || {
        bench.number("SELECT count(*) FROM mail.malformed_commands WHERE failure_code = 'too_old'").await == 1
    })
    .await;
    assert_eq!(bench.number("SELECT count(*) FROM mail.deliveries").await, 3);
    reader.stop().await;
}
