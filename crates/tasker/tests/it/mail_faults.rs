//! The moments in which nobody can know: the server has said 250, and the process or the database is gone before that is committed.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_testkit::{Act, PostgresServer, Process, Program, RedisDb, SmtpSink, Step, wait_for, wait_until};

use crate::stage::{PATIENCE, answer};

/// A tasker on a database of its own, which can be stopped in its tracks.
struct Post {
    redis: RedisDb,
    postgres: PostgresServer,
    sink: SmtpSink,
    folder: TempDir,
}

impl Post {
    async fn new() -> Self {
        Self {
            redis: voiceai_testkit::redis().await,
            postgres: PostgresServer::start().await,
            sink: SmtpSink::start().await,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn program(&self) -> Program {
        Program::new(env!("CARGO_BIN_EXE_voiceai-tasker")).envs([
            ("REDIS_URL", self.redis.url.clone()),
            ("DATABASE_URL", self.postgres.url()),
            ("RUNTIME_DIR", self.folder.path().to_str().unwrap().to_owned()),
            ("INSTANCE_ID", "one".to_owned()),
            ("VOICEAI_OPERATOR", "tester".to_owned()),
            ("LEADER_HEARTBEAT_INTERVAL_MS", "200".to_owned()),
            ("LEADER_LOCK_TTL_MS", "1000".to_owned()),
            ("WORKER_POLL_INTERVAL_MS", "500".to_owned()),
            ("SMTP_HOST", self.sink.address().ip().to_string()),
            ("SMTP_PORT", self.sink.port().to_string()),
            ("SMTP_TLS", "off".to_owned()),
            ("MAIL_RETRY_LADDER", "100ms,100ms,100ms".to_owned()),
        ])
    }

    async fn tasker(&self) -> Process {
        let process = self.program().arg("run").start();
        process.wait_for_line(PATIENCE, "service ready").await;
        process
    }

    async fn enqueue(&self, id: &str, payload: &Value) {
        let payload = payload.to_string();
        let arguments = ["jobs", "enqueue", "send-email", "--id", id, "--payload", &payload];
        answer(self.program().args(arguments)).await.text(0);
    }

    async fn pool(&self) -> PgPool {
        PgPool::connect(&self.postgres.url()).await.unwrap()
    }

    /// Gives a mail to a tasker and stops the database once the mail server has the whole of it and is about to say 250.
    async fn taken_and_not_committed(&self, id: &str, payload: &Value) -> Process {
        let tasker = self.tasker().await;
        self.sink.once(Step::Dot, Act::Late(Duration::from_millis(400)));
        self.enqueue(id, payload).await;
        wait_until(PATIENCE, "the mail server has it", async || self.sink.count() == 1).await;
        self.postgres.pause();
        // The 250 comes meanwhile, and nobody can write it down.
        tokio::time::sleep(Duration::from_millis(900)).await;
        tasker
    }

    /// The states of the delivery and of its attempts.
    async fn until(&self, id: &str, wanted: &str) {
        let pool = self.pool().await;
        wait_for(PATIENCE, format!("{id} is {wanted}"), async || {
            let found: Option<String> = sqlx::query_scalar(
                "SELECT status || ':' || (SELECT string_agg(a.status, ' ' ORDER BY attempt_no) FROM mail.attempts a \
                     WHERE a.delivery_id = d.delivery_id) FROM mail.deliveries d WHERE delivery_id = $1",
            )
            .bind(id)
            .fetch_optional(&pool)
            .await
            .unwrap();
            if found.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    fn message_ids(&self) -> Vec<String> {
        let mut ids: Vec<_> =
            self.sink.received().iter().filter_map(|mail| mail.header("Message-ID")).collect();
        ids.dedup();
        ids
    }
}

fn plain() -> Value {
    json!({ "to": ["kim@example.com"], "subject": "Hello", "text_body": "Hello." })
}

#[tokio::test]
async fn a_process_that_is_killed_between_250_and_the_commit_sends_again_under_the_same_message_id() {
    let post = Post::new().await;
    let tasker = post.taken_and_not_committed("d-1", &plain()).await;
    tasker.kill9();
    post.postgres.resume();
    let _next = post.tasker().await;
    post.until("d-1", "sent:unknown provider_accepted").await;
    assert_eq!((post.sink.count(), post.message_ids().len()), (2, 1), "twice, and whoever looks can see it");
}

#[tokio::test]
async fn a_class_that_must_not_be_doubled_is_held_after_such_a_kill() {
    let post = Post::new().await;
    let receipt = json!({
        "to": ["kim@example.com"], "template_id": "payment-receipt", "locale": "en", "variables": receipt_variables(&post).await,
    });
    let tasker = post.taken_and_not_committed("d-1", &receipt).await;
    tasker.kill9();
    post.postgres.resume();
    let _next = post.tasker().await;
    post.until("d-1", "unknown:unknown").await;
    assert_eq!(post.sink.count(), 1);
    let listed = answer(post.program().args(["mail", "list", "--status", "unknown", "--json"])).await.json(0);
    assert_eq!(listed["deliveries"][0]["delivery_id"], "d-1", "{listed}");
}

/// The sample of the template, as it comes with the service.
async fn receipt_variables(post: &Post) -> Value {
    let listed = answer(post.program().args(["mail", "templates", "--json"])).await.json(0);
    let template = listed["templates"].as_array().unwrap().iter().find(|t| t["id"] == "payment-receipt");
    template.unwrap()["sample"].clone()
}

#[tokio::test]
async fn an_end_that_cannot_be_committed_is_kept_until_the_database_is_back_and_nothing_is_sent_twice() {
    let mut post = Post::new().await;
    let tasker = post.taken_and_not_committed("d-1", &plain()).await;
    // Not only away for a moment: every connection is lost, and what had not been committed with them.
    post.postgres.kill9().await;
    tasker.wait_for_line(PATIENCE, "ends of mail attempts wait for PostgreSQL").await;
    post.postgres.restart(false).await;
    post.until("d-1", "sent:provider_accepted").await;
    assert_eq!(post.sink.count(), 1);
    assert!(tasker.exit().is_none(), "losing the database ends no process");
}
