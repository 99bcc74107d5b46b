use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use voiceai_config::{Binary, Resolved};
use voiceai_mail::Wake;
use voiceai_mail::intake::{Command, Composer, Content, Intake, Source};
use voiceai_mail::message::Mailbox;
use voiceai_mail::sending::{Gate, Sending, SendingSettings};
use voiceai_mail::settings::MailSettings;
use voiceai_mail::template::Catalogue;
use voiceai_mail::transport::{Axis, Outcome, Outgoing, Phase, Reason, Stage, Summary, Transport};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row};
use voiceai_runtime::Vitals;
use voiceai_testkit::Database;

pub(super) const SOON: Duration = Duration::from_secs(20);
pub(super) const ELECTION: &str = "voiceai:tasker:leader";

pub(super) fn settings(pairs: &[(&str, &str)]) -> MailSettings {
    let mut all = vec![
        ("MAIL_SEND_RATE", "10000/s"),
        ("MAIL_RETRY_LADDER", "50ms,50ms"),
        ("MAIL_RETRY_JITTER", "0"),
        ("MAIL_PROVIDER_PAUSE", "300ms"),
        ("EMAIL_SENDER_ADDRESS", "noreply@delphi.example"),
    ];
    all.retain(|(name, _)| !pairs.iter().any(|(own, _)| own == name));
    all.extend(pairs);
    Resolved::from_pairs(Binary::Tasker, all).read(MailSettings::read).unwrap().settings
}

pub(super) fn intake(pool: &PgPool, settings: &MailSettings, suppress: bool, wake: Wake) -> Intake {
    let catalogue = Arc::new(Catalogue::load(None, "en", "Delphi").unwrap());
    let from = Mailbox::parse("Delphi <noreply@delphi.example>", "from").unwrap();
    Intake::new(pool.clone(), Arc::new(Composer::new(catalogue, from, None)), settings, suppress, wake)
}

/// A mail to `to` under the id and key `id`.
pub(super) fn command(id: &str, to: &[&str]) -> Command {
    Command {
        delivery_id: id.to_owned(),
        source: Source::Notification,
        idempotency_key: format!("notification:{id}"),
        to: to.iter().map(|&to| to.to_owned()).collect(),
        cc: vec![],
        bcc: vec![],
        reply_to: vec![],
        content: Content::Rendered {
            subject: format!("Subject of {id}"),
            text_body: "Hello.".to_owned(),
            html_body: String::new(),
        },
        attachments: vec![],
        tenant: None,
        priority: None,
        request_id: None,
        trace_id: None,
        requested_at_ms: None,
    }
}

pub(super) fn template(id: &str, template_id: &str, variables: serde_json::Value) -> Command {
    let serde_json::Value::Object(variables) = variables else { panic!("variables are an object") };
    let content =
        Content::Template { template_id: template_id.to_owned(), locale: "en".to_owned(), variables };
    Command { content, ..command(id, &["a@example.com"]) }
}

/// What the scripted provider does with one mail.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Accept,
    Refuse,
    /// Says that there is no such mailbox.
    Gone,
    Defer(Option<Duration>),
    Fault,
    /// The same, said of the recipient: it may be this mail that the server cannot bear.
    FaultAtRecipient,
    TimeOut,
    /// After the content.
    Unknown,
    /// Hangs before the content.
    HangBefore,
    /// Hangs after the content.
    HangAfter,
}

/// A provider whose answers are scripted per recipient; without a script it accepts.
#[derive(Default)]
pub(super) struct Provider {
    script: Mutex<HashMap<String, VecDeque<Act>>>,
    /// Recipient and bytes of everything whose content went out.
    pub(super) contents: Mutex<Vec<(String, Bytes)>>,
    pub(super) running: AtomicUsize,
    pub(super) most: AtomicUsize,
    pub(super) calls: AtomicUsize,
}

impl Provider {
    pub(super) fn script(&self, to: &str, acts: &[Act]) {
        self.script.lock().unwrap().insert(to.to_owned(), acts.iter().cloned().collect());
    }

    pub(super) fn contents_of(&self, to: &str) -> Vec<Bytes> {
        let contents = self.contents.lock().unwrap();
        contents.iter().filter(|(have, _)| have == to).map(|(_, bytes)| bytes.clone()).collect()
    }

    async fn act(&self, mail: &Outgoing, stage: &dyn Stage) -> Outcome {
        let to = &mail.envelope.to;
        let act =
            self.script.lock().unwrap().get_mut(to).and_then(VecDeque::pop_front).unwrap_or(Act::Accept);
        let summary = |phase, reason, code: u16, text: &str| Summary {
            phase,
            reason,
            code: Some(code),
            enhanced: None,
            text: text.to_owned(),
            host: "sink:25".to_owned(),
            tls: None,
            duration_ms: 1,
        };
        match act {
            Act::Fault => {
                return Outcome::ProviderFault {
                    retry_after: None,
                    summary: summary(Phase::Auth, Reason::Authentication, 535, "535 5.7.8 wrong password"),
                };
            }
            Act::FaultAtRecipient => {
                return Outcome::ProviderFault {
                    retry_after: None,
                    summary: summary(Phase::Rcpt, Reason::Unavailable, 421, "421 4.7.0 too many errors"),
                };
            }
            Act::TimeOut => {
                return Outcome::TimedOut { summary: summary(Phase::Mail, Reason::TimedOut, 0, "no answer") };
            }
            Act::HangBefore => std::future::pending().await,
            _ => {}
        }
        if let Err(withdraw) = stage.content_begins().await {
            return Outcome::Withdrawn { summary: summary(Phase::Data, Reason::Withdrawn, 0, &withdraw.0) };
        }
        self.contents.lock().unwrap().push((to.clone(), mail.bytes.clone()));
        match act {
            Act::Refuse => Outcome::Refused {
                axis: Axis::Recipient,
                summary: summary(Phase::Final, Reason::Mailbox, 550, "550 5.1.1 no such user"),
            },
            Act::Gone => Outcome::Refused {
                axis: Axis::Recipient,
                summary: Summary {
                    enhanced: Some("5.1.1".to_owned()),
                    ..summary(Phase::Rcpt, Reason::Mailbox, 550, "no such user")
                },
            },
            Act::Defer(retry_after) => Outcome::Deferred {
                axis: Axis::Recipient,
                retry_after,
                summary: summary(Phase::Final, Reason::MailboxBusy, 452, "452 4.2.2 full"),
            },
            Act::Unknown => {
                Outcome::Unknown { summary: summary(Phase::Final, Reason::Network, 0, "connection lost") }
            }
            Act::HangAfter => std::future::pending().await,
            _ => Outcome::Accepted {
                provider_id: Some("p-1".to_owned()),
                summary: summary(Phase::Final, Reason::None, 250, "250 2.0.0 ok"),
            },
        }
    }
}

impl Transport for Provider {
    fn name(&self) -> &'static str {
        "smtp"
    }

    fn send<'a>(&'a self, mail: &'a Outgoing, stage: &'a dyn Stage) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let outcome = self.act(mail, stage).await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            outcome
        })
    }
}

/// A database, an intake and a process that sends.
pub(super) struct Bench {
    pub(super) database: Database,
    pub(super) pool: PgPool,
    pub(super) intake: Intake,
    pub(super) provider: Arc<Provider>,
    pub(super) settings: MailSettings,
    pub(super) wake: Wake,
}

impl Bench {
    pub(super) async fn new(pairs: &[(&str, &str)]) -> Self {
        let database = voiceai_testkit::database().await;
        let pool = database.pool().await;
        let settings = settings(pairs);
        let wake = Wake::new();
        let intake = intake(&pool, &settings, false, wake.clone());
        Self { database, pool, intake, provider: Arc::default(), settings, wake }
    }

    /// Starts sending, as the process `instance`.
    pub(super) fn start(&self, instance: &str) -> Running {
        self.start_behind(instance, Arc::new(|| Box::pin(std::future::ready(Ok(())))))
    }

    /// The same with a gate. It has a runtime and a pool of its own, so that it can die like a process: without a word.
    pub(super) fn start_behind(&self, instance: &str, gate: Gate) -> Running {
        let settings = SendingSettings {
            concurrency: self.settings.concurrency,
            rate: self.settings.rate,
            policy: self.settings.policy.clone(),
            poll_interval: Duration::from_secs(5),
            attempt_max: Duration::from_secs(60),
            drain: Duration::from_millis(300),
            instance_id: instance.to_owned(),
            host: "here".to_owned(),
            election: ELECTION.to_owned(),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stopping, forced) = (CancellationToken::new(), CancellationToken::new());
        let (database, provider, wake) =
            (self.database.clone(), Arc::clone(&self.provider), self.wake.clone());
        let (stop, force) = (stopping.clone(), forced.clone());
        let task = runtime.spawn(async move {
            let pool = database.pool().await;
            let sending = Sending::new(pool, provider, settings, wake, gate);
            sending.run(stop, force, &Vitals::new()).await;
        });
        Running { stopping, forced, task, runtime: Some(runtime) }
    }

    pub(super) async fn accept(&self, command: Command) {
        self.intake.accept(command).await.unwrap();
    }

    pub(super) async fn text(&self, sql: &'static str, id: &str) -> String {
        let row = sqlx::query(sql).bind(id).fetch_one(&self.pool).await.unwrap();
        row.try_get::<Option<String>, _>(0).unwrap().unwrap_or_default()
    }

    pub(super) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query(sql).fetch_one(&self.pool).await.unwrap().try_get(0).unwrap()
    }

    pub(super) async fn status(&self, id: &str) -> String {
        self.text("SELECT status FROM mail.deliveries WHERE delivery_id = $1", id).await
    }

    /// The states of all attempts of a delivery, in order.
    pub(super) async fn attempts(&self, id: &str) -> String {
        self.text(
            "SELECT string_agg(status, ' ' ORDER BY position, attempt_no) FROM mail.attempts WHERE delivery_id = $1",
            id,
        )
        .await
    }

    pub(super) async fn until_status(&self, id: &str, status: &str) {
        voiceai_testkit::wait_for(SOON, format!("{id} is {status}"), async || {
            let have = self.status(id).await;
            if have == status { Ok(()) } else { Err(format!("{have}: {}", self.attempts(id).await)) }
        })
        .await;
    }
}

/// A process that sends.
pub(super) struct Running {
    pub(super) stopping: CancellationToken,
    pub(super) forced: CancellationToken,
    task: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Running {
    pub(super) async fn stop(mut self) {
        self.stopping.cancel();
        tokio::time::timeout(SOON, &mut self.task).await.expect("sending stops").unwrap();
    }

    /// As kill -9: nothing is handed back and nothing written any more.
    pub(super) fn kill(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A gate that opens when it is told to.
pub(super) fn gate() -> (watch::Sender<bool>, Gate) {
    let (open, is_open) = watch::channel(false);
    let gate: Gate = Arc::new(move || {
        let open = *is_open.borrow();
        Box::pin(std::future::ready(if open { Ok(()) } else { Err("closed".to_owned()) }))
    });
    (open, gate)
}
