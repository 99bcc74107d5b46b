//! The family of duties: certificates, alerts on their way up, notices by post, the daily report, rollouts.

use std::sync::Arc;

use voiceai_cli::Failure;
use voiceai_config::Reader;
use voiceai_platform::certificates::{CertificateContext, CertificateSettings, CertificateUpkeep};
use voiceai_platform::escalation::{AlertEscalate, AlertPost, EscalationContext, NotificationDispatch};
use voiceai_platform::outgoing::Outgoing;
use voiceai_platform::rollout::{RolloutContext, RolloutSettings, RolloutStep};
use voiceai_platform::sla::{SlaContext, SlaReport, SlaSettings};
use voiceai_postgres::PgPool;
use voiceai_queue::cron::Definition;
use voiceai_queue::{Job as _, Registry};
use voiceai_webhook::{Allowed, Client, Guard, SystemResolver};

use super::registry::Kind;
use crate::notify::{NoticePost, PostContext};
use crate::settings::TaskerSettings;

/// The settings of duties.
#[derive(Debug, Clone)]
pub struct DutySettings {
    /// `DEVICE_CA_…`, `CRL_…`, `CERT_…`.
    pub certificates: CertificateSettings,
    /// `ROLLOUT_…`.
    pub rollout: RolloutSettings,
    /// `SLA_REPORT_…`.
    pub sla: SlaSettings,
}

impl DutySettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            certificates: CertificateSettings::read(reader),
            rollout: RolloutSettings::read(reader),
            sla: SlaSettings::read(reader),
        }
    }
}

/// What the handlers of the family work with.
#[derive(Clone, Debug)]
pub struct DutyContexts {
    certificates: CertificateContext,
    escalation: EscalationContext,
    posts: PostContext,
    rollout: RolloutContext,
    sla: SlaContext,
}

impl DutyContexts {
    /// `guarded` posts to addresses out of tables.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn new(
        settings: &TaskerSettings,
        pool: &PgPool,
        guarded: Client,
        environment: &str,
    ) -> Result<Self, Failure> {
        let outgoing = Outgoing { guarded, trusted: trusted(settings)? };
        let duties = &settings.duties;
        Ok(Self {
            certificates: CertificateContext {
                pool: pool.clone(),
                rule: settings.egress.clone(),
                settings: duties.certificates.clone(),
            },
            escalation: EscalationContext { pool: pool.clone(), outgoing: outgoing.clone() },
            posts: PostContext {
                pool: pool.clone(),
                outgoing: outgoing.clone(),
                settings: settings.notices.clone(),
                environment: environment.to_owned(),
            },
            rollout: RolloutContext { pool: pool.clone(), outgoing, settings: duties.rollout.clone() },
            sla: SlaContext { pool: pool.clone(), settings: duties.sla.clone() },
        })
    }
}

/// Posts to addresses out of the settings: whoever runs the service may name a private one, and one without TLS.
fn trusted(settings: &TaskerSettings) -> Result<Client, Failure> {
    let everything = ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    let failed = |reason: String| {
        Failure::failed(
            "tls_unavailable",
            format!("nothing can be posted: {reason}"),
            "Install ca-certificates.",
        )
    };
    let allowed = Allowed::parse(&everything, true).map_err(failed)?;
    let guard = Guard::new(allowed, Arc::new(SystemResolver));
    Client::new(&settings.webhook, guard, settings.egress.clone()).map_err(|error| failed(error.to_string()))
}

/// The kinds of the family.
#[must_use]
pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::of::<CertificateUpkeep>(),
        Kind::of::<AlertEscalate>(),
        Kind::of::<AlertPost>(),
        Kind::of::<NotificationDispatch>(),
        Kind::of::<NoticePost>(),
        Kind::of::<SlaReport>(),
        Kind::of::<RolloutStep>(),
    ]
}

/// Their handlers.
#[must_use]
pub fn register(registry: Registry, contexts: &DutyContexts) -> Registry {
    registry
        .register::<CertificateUpkeep>(contexts.certificates.clone())
        .register::<AlertEscalate>(contexts.escalation.clone())
        .register::<AlertPost>(contexts.escalation.clone())
        .register::<NotificationDispatch>(contexts.escalation.clone())
        .register::<NoticePost>(contexts.posts.clone())
        .register::<SlaReport>(contexts.sla.clone())
        .register::<RolloutStep>(contexts.rollout.clone())
}

/// Every one is enabled: without its tables a duty is skipped. Rollouts wait for an address that takes their orders.
#[must_use]
pub fn schedules(settings: &TaskerSettings) -> Vec<Definition> {
    let schedule = |name, queue: &str, kind, expression| Definition {
        queue: queue.to_owned(),
        ..Definition::new(name, kind, expression)
    };
    let mut schedules = vec![
        schedule("certificates", CertificateUpkeep::QUEUE, CertificateUpkeep::KIND, "23 * * * *"),
        schedule("alert-escalation", AlertEscalate::QUEUE, AlertEscalate::KIND, "* * * * *"),
        schedule("alert-notification", NotificationDispatch::QUEUE, NotificationDispatch::KIND, "* * * * *"),
        schedule("sla-report", SlaReport::QUEUE, SlaReport::KIND, "0 6 * * *"),
        schedule("rollouts", RolloutStep::QUEUE, RolloutStep::KIND, "* * * * *"),
    ];
    if let Some(rollouts) = schedules.last_mut() {
        rollouts.enabled = settings.duties.rollout.url.is_some();
    }
    schedules
}
