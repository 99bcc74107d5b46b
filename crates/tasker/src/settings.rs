//! The settings that only voiceai-tasker reads.

use std::collections::BTreeMap;
use std::time::Duration;

use voiceai_aws::{AwsAccess, S3Settings};
use voiceai_config::catalogue::transport::SES_FEEDBACK_TOPIC_ARNS;
use voiceai_config::catalogue::{notice, queue, storage};
use voiceai_config::{Rate, Reader, parse_duration};
use voiceai_egress::Rule;
use voiceai_listener::ListenerSettings;
use voiceai_mail::settings::MailSettings;
use voiceai_mail::transport::{SesSettings, SmtpSettings};
use voiceai_monitor::{CollectorSettings, MonitorSettings};
use voiceai_orchestration::OrchestrationSettings;
use voiceai_platform::HousekeepingSettings;
use voiceai_recording::{RECORDING_QUEUE, RecordingSettings};
use voiceai_runtime::Secret;
use voiceai_webhook::{Keys, WebhookSettings};

use crate::jobs::backup::{BackupPolicy, Keep, check_recipients};
use crate::jobs::duty::DutySettings;
use crate::jobs::export::ExportSettings;

/// Queue of outgoing mail.
pub const EMAIL_QUEUE: &str = "email-queue";
/// Queue of agent runs.
pub const ORCHESTRATION_QUEUE: &str = "orchestration-queue";
/// Queue of everything that names no other.
pub const DEFAULT_QUEUE: &str = "default";

/// What a queue's `QUEUE_<NAME>_…` variables say, each overriding the queue's own figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Jobs that this process runs at a time.
    pub concurrency: Option<u32>,
    /// Starts per period over all processes.
    pub rate: Option<Rate>,
    /// Attempts in all, for kinds that retry exponentially.
    pub attempts: Option<u32>,
    /// Wait before the second attempt, for the same kinds.
    pub backoff: Option<Duration>,
    /// Longest time of an attempt.
    pub timeout: Option<Duration>,
    /// How long results of completed jobs are kept.
    pub keep_completed: Option<Duration>,
    /// How many results of completed jobs are kept.
    pub keep_completed_count: Option<u64>,
    /// How long dead jobs are kept.
    pub keep_dead: Option<Duration>,
}

/// The figures of one queue's pool in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Jobs that this process runs at a time.
    pub concurrency: u32,
    /// Starts per period over all processes.
    pub rate: Option<Rate>,
    /// Attempts in all; `None` leaves it to the kind.
    pub attempts: Option<u32>,
    /// Wait before the second attempt; `None` leaves it to the kind.
    pub backoff: Option<Duration>,
    /// Longest time of an attempt; `None` leaves it to the kind.
    pub timeout: Option<Duration>,
    /// How long results of completed jobs are kept; `None`: a day.
    pub keep_completed: Option<Duration>,
    /// How many results of completed jobs are kept; `None`: 1,000.
    pub keep_completed_count: Option<u64>,
    /// How long dead jobs are kept; `None`: 7 days.
    pub keep_dead: Option<Duration>,
}

/// The settings of workers, schedules and backups.
#[derive(Clone, Debug)]
pub struct TaskerSettings {
    /// `WORKER_CONCURRENCY`. Jobs that one process runs at a time, per queue. Default 5.
    pub worker_concurrency: u32,
    /// `WORKER_POLL_INTERVAL_MS`. The safety net behind wake-ups. Default 5 s.
    pub worker_poll: Duration,
    /// `SCHEDULER_POLL_INTERVAL_MS`. The safety net behind wake-ups. Default 10 s.
    pub scheduler_poll: Duration,
    /// `JOB_HISTORY_RETENTION`. How long completions and failed attempts stay in the history. Default 7 days.
    pub history_ordinary: Duration,
    /// `JOB_HISTORY_NOTABLE_RETENTION`. How long everything else stays there. Default 30 days.
    pub history_notable: Duration,
    /// `DIAGNOSTIC_JOBS`. Whether the probe is registered. Default false.
    pub diagnostic_jobs: bool,
    /// `S3_…`. Where backups go; absent without `S3_BUCKET`.
    pub store: Option<S3Settings>,
    /// `BACKUP_…`. What stays, how it is compressed and encrypted, and when its age is an alarm.
    pub backup: BackupPolicy,
    /// `EXPORTS_S3_BUCKET`, else `S3_BUCKET`. Where exports go; absent without either.
    pub export_store: Option<S3Settings>,
    /// `EXPORT_…`. Exports of the platform's tables.
    pub exports: ExportSettings,
    /// `BACKUP_DATABASE_<NAME>_URL`. Further databases, by name in small letters.
    pub backup_databases: BTreeMap<String, Secret>,
    /// `…_HTTP_…`. The HTTP listeners; none unless an address is set.
    pub http: ListenerSettings,
    /// `MAIL_…` and the sender. Intake, attempts, retention.
    pub mail: MailSettings,
    /// `WEBHOOK_…`. Limits, attempts, circuits, retention.
    pub webhook: WebhookSettings,
    /// `SMTP_…`. The mail server; absent without `SMTP_HOST`.
    pub smtp: Option<SmtpSettings>,
    /// `SES_…`. How mail is handed to Amazon SES.
    pub ses: SesSettings,
    /// `SES_FEEDBACK_TOPIC_ARNS`. Topics whose reports about mail are believed; without one none is listened to.
    pub feedback_topics: Vec<String>,
    /// `AWS_…`. Where and as whom AWS is spoken to.
    pub aws: AwsAccess,
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`. The way out.
    pub egress: Rule,
    /// `RECORDING_…`, `POST_CALL_…`. What follows a call.
    pub recording: RecordingSettings,
    /// `ALERT_…`. Who is told what happens to the platform.
    pub notices: NoticeSettings,
    /// `…_HEALTH_URL`, `WATCHED_…`, `HEALTH_…`. Services that are watched.
    pub monitor: MonitorSettings,
    /// `METRICS_…`. Figures that are kept.
    pub collector: CollectorSettings,
    /// `HOUSEKEEPING_…`, `RETENTION_…`, `SUBSCRIPTION_…`, `STRIPE_…`. Upkeep of the platform's tables.
    pub housekeeping: HousekeepingSettings,
    /// `ORCHESTRATION_…`. The agents, and the limits of calling them.
    pub orchestration: OrchestrationSettings,
    /// `DEVICE_CA_…`, `CRL_…`, `CERT_…`, `SLA_REPORT_…`, `ROLLOUT_…`. Certificates, reports, rollouts.
    pub duties: DutySettings,
    overrides: BTreeMap<String, Overrides>,
}

/// Who is told, and how often.
#[derive(Clone, Debug, Default)]
pub struct NoticeSettings {
    /// `ALERT_RECIPIENTS`. Addresses; none: nobody is told.
    pub recipients: Vec<String>,
    /// `ALERT_THROTTLE`. How long mail about an event of a group rests after one. Default 15 minutes.
    pub throttle: Duration,
    /// `ALERT_WEBHOOK_URL`. Where notices are posted as well.
    pub webhook_url: Option<Secret>,
    /// `ALERT_WEBHOOK_SECRET`. What those posts are signed with.
    pub webhook_keys: Option<Keys>,
}

impl NoticeSettings {
    fn read(reader: &Reader<'_>) -> Self {
        Self {
            recipients: reader.optional(&notice::ALERT_RECIPIENTS).unwrap_or_default(),
            throttle: reader.get(&notice::ALERT_THROTTLE),
            webhook_url: reader.optional(&notice::ALERT_WEBHOOK_URL),
            webhook_keys: reader.optional(&notice::ALERT_WEBHOOK_SECRET).and_then(|secret| {
                let keys = Keys::new(vec![secret]);
                if let Err(error) = &keys {
                    let remedy = "Set it to whsec_ followed by the base64 of 24 to 64 random bytes.";
                    let expected = format!("a secret that signs: {error}");
                    reader.violation(&notice::ALERT_WEBHOOK_SECRET, expected, remedy);
                }
                keys.ok()
            }),
        }
    }
}

impl TaskerSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let mut overrides: BTreeMap<String, Overrides> = BTreeMap::new();
        let mut of = |name: String, set: &dyn Fn(&mut Overrides)| set(overrides.entry(name).or_default());
        for (name, value) in reader.each(&queue::QUEUE_CONCURRENCY) {
            of(name, &|o| o.concurrency = Some(value));
        }
        for (name, value) in reader.each(&queue::QUEUE_RATE) {
            of(name, &|o| o.rate = Some(value));
        }
        for (name, value) in reader.each(&queue::QUEUE_ATTEMPTS) {
            of(name, &|o| o.attempts = Some(value));
        }
        for (name, value) in reader.each(&queue::QUEUE_BACKOFF) {
            of(name, &|o| o.backoff = Some(value));
        }
        for (name, value) in reader.each(&queue::QUEUE_TIMEOUT) {
            of(name, &|o| o.timeout = Some(value));
        }
        for (name, value) in reader.each(&queue::QUEUE_KEEP_COMPLETED) {
            of(name, &|o| o.keep_completed = Some(value));
        }
        for (name, value) in reader.each(&queue::QUEUE_KEEP_COMPLETED_COUNT) {
            of(name, &|o| o.keep_completed_count = Some(value));
        }
        for (name, value) in reader.each(&queue::QUEUE_KEEP_DEAD) {
            of(name, &|o| o.keep_dead = Some(value));
        }
        // The two names of one queue's variable must agree; the reader says so where they do not.
        for name in [DEFAULT_QUEUE, EMAIL_QUEUE, ORCHESTRATION_QUEUE] {
            let _ = reader.named(&queue::QUEUE_CONCURRENCY, name);
            let _ = reader.named(&queue::QUEUE_RATE, name);
            let _ = reader.named(&queue::QUEUE_ATTEMPTS, name);
            let _ = reader.named(&queue::QUEUE_BACKOFF, name);
            let _ = reader.named(&queue::QUEUE_TIMEOUT, name);
            let _ = reader.named(&queue::QUEUE_KEEP_COMPLETED, name);
            let _ = reader.named(&queue::QUEUE_KEEP_COMPLETED_COUNT, name);
            let _ = reader.named(&queue::QUEUE_KEEP_DEAD, name);
        }
        Self {
            worker_concurrency: reader.get(&queue::WORKER_CONCURRENCY),
            worker_poll: reader.get(&queue::WORKER_POLL_INTERVAL_MS),
            scheduler_poll: reader.get(&queue::SCHEDULER_POLL_INTERVAL_MS),
            history_ordinary: reader.get(&queue::JOB_HISTORY_RETENTION),
            history_notable: reader.get(&queue::JOB_HISTORY_NOTABLE_RETENTION),
            diagnostic_jobs: reader.get(&queue::DIAGNOSTIC_JOBS),
            store: S3Settings::read(reader),
            backup: backup_policy(reader),
            export_store: export_store(reader),
            exports: export_settings(reader),
            backup_databases: reader
                .each(&storage::BACKUP_DATABASE_URL)
                .into_iter()
                .map(|(name, url)| (name.to_ascii_lowercase(), url))
                .collect(),
            mail: MailSettings::read(reader),
            webhook: WebhookSettings::read(reader),
            smtp: SmtpSettings::read(reader),
            ses: SesSettings::read(reader),
            feedback_topics: reader.optional(&SES_FEEDBACK_TOPIC_ARNS).unwrap_or_default(),
            aws: AwsAccess::read(reader),
            egress: Rule::read(reader),
            http: ListenerSettings::read(reader),
            recording: RecordingSettings::read(reader),
            notices: NoticeSettings::read(reader),
            orchestration: OrchestrationSettings::read(reader),
            monitor: MonitorSettings::read(reader),
            collector: CollectorSettings::read(reader),
            housekeeping: HousekeepingSettings::read(reader),
            duties: DutySettings::read(reader),
            overrides,
        }
    }

    /// The pool of `queue`: what its variables say, else its own figures, else the defaults of every queue.
    #[must_use]
    pub fn pool(&self, queue: &str) -> Pool {
        let own = own_figures(queue, self.worker_concurrency, self.mail.rate);
        let given = self.overrides_of(queue);
        Pool {
            concurrency: given.concurrency.unwrap_or(own.concurrency),
            rate: given.rate.or(own.rate),
            attempts: given.attempts.or(own.attempts),
            backoff: given.backoff.or(own.backoff),
            timeout: given.timeout.or(own.timeout),
            keep_completed: given.keep_completed.or(own.keep_completed),
            keep_completed_count: given.keep_completed_count.or(own.keep_completed_count),
            keep_dead: given.keep_dead.or(own.keep_dead),
        }
    }

    fn overrides_of(&self, queue: &str) -> Overrides {
        let variable = |name: &str| {
            let part: String = name
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                .collect();
            self.overrides.get(&part).copied().unwrap_or_default()
        };
        let long = variable(queue);
        let short = queue.strip_suffix("-queue").map(variable).unwrap_or_default();
        Overrides {
            concurrency: long.concurrency.or(short.concurrency),
            rate: long.rate.or(short.rate),
            attempts: long.attempts.or(short.attempts),
            backoff: long.backoff.or(short.backoff),
            timeout: long.timeout.or(short.timeout),
            keep_completed: long.keep_completed.or(short.keep_completed),
            keep_completed_count: long.keep_completed_count.or(short.keep_completed_count),
            keep_dead: long.keep_dead.or(short.keep_dead),
        }
    }
}

/// The exports' own bucket; without one that of the backups, whose rights and rules are then the exports' too.
fn export_store(reader: &Reader<'_>) -> Option<S3Settings> {
    if let Some(own) = S3Settings::read_other(reader, &storage::EXPORTS_S3_BUCKET, &storage::S3_REGION) {
        return Some(own);
    }
    let shared = S3Settings::read_other(reader, &storage::S3_BUCKET, &storage::S3_REGION)?;
    reader.warning(
        &storage::EXPORTS_S3_BUCKET,
        "it is not set: exports go to S3_BUCKET, beside the backups; a link to an export leads into that bucket",
    );
    Some(shared)
}

fn export_settings(reader: &Reader<'_>) -> ExportSettings {
    let trimmed = |text: String| text.trim_matches('/').to_owned();
    let prefix = trimmed(reader.get(&storage::EXPORT_PREFIX));
    let backups = trimmed(reader.get(&storage::S3_PREFIX));
    let bucket = reader.optional(&storage::S3_BUCKET);
    let is_shared = reader.optional(&storage::EXPORTS_S3_BUCKET).is_none_or(|own| Some(own) == bucket);
    if is_shared && format!("{prefix}/").starts_with(&format!("{backups}/")) {
        reader.violation(&storage::EXPORT_PREFIX, "a folder outside S3_PREFIX", "Choose another folder.");
    }
    let secret = reader.optional(&storage::EXPORT_CALLBACK_SECRET);
    let callback_keys = secret.and_then(|secret| match Keys::new(vec![secret]) {
        Ok(keys) => Some(keys),
        Err(error) => {
            let remedy = "Set it to whsec_ and 24 to 64 random bytes in base64, such as `openssl rand -base64 32` gives.";
            reader.violation(&storage::EXPORT_CALLBACK_SECRET, error.to_string(), remedy);
            None
        }
    });
    let ladder = reader.get(&storage::EXPORT_CALLBACK_RETRY_LADDER);
    ExportSettings {
        prefix,
        retention: reader.get(&storage::EXPORT_RETENTION),
        link_ttl: reader.get(&storage::EXPORT_LINK_TTL),
        tables: reader.optional(&storage::EXPORT_TABLES).unwrap_or_default(),
        callback_keys,
        callback_timeout: reader.get(&storage::EXPORT_CALLBACK_TIMEOUT),
        callback_ladder: ladder.iter().filter_map(|rung| parse_duration(rung).ok()).collect(),
        lease: Duration::from_secs(60),
    }
}

fn backup_policy(reader: &Reader<'_>) -> BackupPolicy {
    let recipients = reader.optional(&storage::BACKUP_AGE_RECIPIENTS).unwrap_or_default();
    if let Err(error) = check_recipients(&recipients) {
        reader.violation(
            &storage::BACKUP_AGE_RECIPIENTS,
            "a comma list of age1… public keys",
            error.to_string(),
        );
    }
    BackupPolicy {
        keep: Keep {
            last: reader.get(&storage::BACKUP_KEEP_LAST),
            daily: reader.get(&storage::BACKUP_KEEP_DAILY),
            weekly: reader.get(&storage::BACKUP_KEEP_WEEKLY),
            monthly: reader.get(&storage::BACKUP_KEEP_MONTHLY),
        },
        compression: reader.get(&storage::BACKUP_COMPRESSION),
        recipients,
        identity_file: reader.optional(&storage::BACKUP_AGE_IDENTITY_FILE),
        proved_max_age: reader.get(&storage::BACKUP_PROVED_MAX_AGE),
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The figures that come with a queue: two queues have pools of their own, beside the one of every other queue. Mail is taken in as
/// fast as it is sent: who raises `MAIL_SEND_RATE` has one setting to change.
fn own_figures(queue: &str, worker_concurrency: u32, mail_rate: Rate) -> Pool {
    let every = Pool {
        concurrency: worker_concurrency,
        rate: None,
        attempts: None,
        backoff: None,
        timeout: None,
        keep_completed: None,
        keep_completed_count: None,
        keep_dead: None,
    };
    match queue {
        EMAIL_QUEUE => Pool {
            concurrency: 5,
            rate: Some(mail_rate),
            attempts: Some(3),
            backoff: Some(Duration::from_secs(60)),
            timeout: None,
            keep_completed: Some(DAY),
            keep_completed_count: Some(1_000),
            keep_dead: Some(DAY * 7),
        },
        ORCHESTRATION_QUEUE => Pool {
            concurrency: 3,
            rate: Some(Rate { count: 5, per: Duration::from_secs(60) }),
            attempts: Some(3),
            backoff: Some(Duration::from_secs(30)),
            timeout: Some(Duration::from_secs(600)),
            keep_completed: Some(DAY),
            keep_completed_count: Some(500),
            keep_dead: Some(DAY * 7),
        },
        // Each keeps a processor busy for minutes.
        RECORDING_QUEUE => Pool { concurrency: worker_concurrency.min(2), ..every },
        _ => every,
    }
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> TaskerSettings {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        resolved.read(TaskerSettings::read).unwrap().settings
    }

    fn pool_rate(pairs: &[(&str, &str)]) -> Rate {
        settings(pairs).pool(EMAIL_QUEUE).rate.unwrap()
    }

    #[test]
    fn the_two_named_queues_have_their_own_pools() {
        let settings = settings(&[("WORKER_CONCURRENCY", "9")]);
        assert_eq!(settings.pool("anything").concurrency, 9);
        assert_eq!(settings.pool("anything").rate, None);
        assert_eq!(settings.pool(RECORDING_QUEUE).concurrency, 2, "ffmpeg needs the processors");
        let email = settings.pool(EMAIL_QUEUE);
        assert_eq!(
            (email.concurrency, email.attempts, email.backoff),
            (5, Some(3), Some(Duration::from_secs(60)))
        );
        assert_eq!(email.rate, Some(Rate { count: 10, per: Duration::from_secs(1) }));
        let orchestration = settings.pool(ORCHESTRATION_QUEUE);
        assert_eq!((orchestration.concurrency, orchestration.backoff), (3, Some(Duration::from_secs(30))));
        assert_eq!(orchestration.rate, Some(Rate { count: 5, per: Duration::from_secs(60) }));
        assert_eq!((email.timeout, orchestration.timeout), (None, Some(Duration::from_secs(600))));
        for (pool, results) in [(email, 1_000), (orchestration, 500)] {
            assert_eq!((pool.attempts, pool.keep_completed_count), (Some(3), Some(results)));
            assert_eq!((pool.keep_completed, pool.keep_dead), (Some(DAY), Some(DAY * 7)));
        }
        assert_eq!((settings.history_ordinary, settings.history_notable), (DAY * 7, DAY * 30));
    }

    #[test]
    fn a_queues_variables_win_in_both_spellings() {
        let settings = settings(&[
            ("QUEUE_EMAIL_CONCURRENCY", "50"),
            ("QUEUE_ORCHESTRATION_QUEUE_RATE", "100/m"),
            ("QUEUE_MY_QUEUE_ATTEMPTS", "7"),
            ("QUEUE_MY_QUEUE_BACKOFF", "3s"),
            ("QUEUE_MY_QUEUE_KEEP_COMPLETED", "2h"),
            ("QUEUE_ORCHESTRATION_TIMEOUT", "30m"),
            ("QUEUE_ORCHESTRATION_KEEP_COMPLETED_COUNT", "7"),
            ("QUEUE_EMAIL_QUEUE_KEEP_DEAD", "30d"),
        ]);
        assert_eq!(settings.pool(EMAIL_QUEUE).concurrency, 50);
        let raised = pool_rate(&[("MAIL_SEND_RATE", "70/s")]);
        assert_eq!(raised, Rate { count: 70, per: Duration::from_secs(1) }, "one rule for both");
        let own = pool_rate(&[("MAIL_SEND_RATE", "70/s"), ("QUEUE_EMAIL_RATE", "3/s")]);
        assert_eq!(own.count, 3);
        let rate = settings.pool(ORCHESTRATION_QUEUE).rate.unwrap();
        assert_eq!((rate.count, rate.per), (100, Duration::from_secs(60)));
        let mine = settings.pool("my.queue");
        assert_eq!((mine.attempts, mine.backoff), (Some(7), Some(Duration::from_secs(3))));
        assert_eq!(
            (mine.keep_completed, mine.keep_completed_count),
            (Some(Duration::from_secs(7_200)), None),
            "the count's name is longer and another"
        );
        let orchestration = settings.pool(ORCHESTRATION_QUEUE);
        assert_eq!(
            (orchestration.timeout, orchestration.keep_completed_count),
            (Some(Duration::from_secs(1_800)), Some(7))
        );
        assert_eq!(settings.pool(EMAIL_QUEUE).keep_dead, Some(DAY * 30));
    }

    #[test]
    fn exports_have_a_bucket_of_their_own_or_share_the_backups_with_a_warning() {
        let read = |pairs: &[(&str, &str)]| {
            Resolved::from_pairs(Binary::Tasker, pairs.iter().copied()).read(TaskerSettings::read).map_err(
                |report| report.violations.into_iter().map(|violation| violation.name).collect::<Vec<_>>(),
            )
        };
        let warned = |pairs: &[(&str, &str)]| {
            let loaded = read(pairs).unwrap();
            let warned = loaded.warnings.iter().any(|warning| warning.name == "EXPORTS_S3_BUCKET");
            (loaded.settings.export_store.map(|store| store.bucket), warned)
        };
        assert_eq!(warned(&[]), (None, false));
        assert_eq!(warned(&[("S3_BUCKET", "backups")]), (Some("backups".to_owned()), true));
        let both = [("S3_BUCKET", "backups"), ("EXPORTS_S3_BUCKET", "exports")];
        assert_eq!(warned(&both), (Some("exports".to_owned()), false));
        assert_eq!(warned(&both[1..]), (Some("exports".to_owned()), false));
        // In a bucket of their own the folder of the backups is free.
        let folder = ("EXPORT_PREFIX", "database-dumps");
        assert!(read(&[both[0], both[1], folder]).is_ok());
        assert_eq!(read(&[both[0], folder]).err(), Some(vec!["EXPORT_PREFIX".to_owned()]));
        let secret = [("EXPORT_CALLBACK_SECRET", "hunter2")];
        assert_eq!(read(&secret).err(), Some(vec!["EXPORT_CALLBACK_SECRET".to_owned()]));
    }

    #[test]
    fn two_spellings_that_disagree_are_refused() {
        let resolved = Resolved::from_pairs(
            Binary::Tasker,
            [("QUEUE_EMAIL_CONCURRENCY", "5"), ("QUEUE_EMAIL_QUEUE_CONCURRENCY", "6")],
        );
        assert!(resolved.read(TaskerSettings::read).is_err());
    }
}
