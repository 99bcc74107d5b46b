//! What mail is made of here: the composer, the intake and the way out, for the service and for commands alike.

use std::sync::Arc;
use std::time::Duration;

use voiceai_cli::Failure;
use voiceai_config::catalogue::transport::EmailTransport;
use voiceai_mail::intake::{Composer, Intake};
use voiceai_mail::message::Mailbox;
use voiceai_mail::settings::MailSettings;
use voiceai_mail::template::Catalogue;
use voiceai_mail::transport::{SmtpTransport, StubTransport, Transport};
use voiceai_mail::{Address, Wake};
use voiceai_postgres::PgPool;
use voiceai_service::Context;

use crate::settings::TaskerSettings;

/// The way out.
pub struct Route {
    /// What carries mail away.
    pub transport: Arc<dyn Transport>,
    /// The longest that one attempt can take.
    pub attempt_max: Duration,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").field("transport", &self.transport.name()).finish_non_exhaustive()
    }
}

/// The templates.
///
/// # Errors
/// Refused (4), with file and line of everything that is broken.
pub fn catalogue(settings: &MailSettings) -> Result<Catalogue, Failure> {
    let loaded =
        Catalogue::load(settings.template_dir.as_deref(), &settings.default_locale, &settings.sender.name);
    loaded.map_err(|error| {
        Failure::refused("broken_templates", error.to_string(), "Correct the templates in MAIL_TEMPLATE_DIR.")
    })
}

/// The intake of new mail.
///
/// # Errors
/// Refused (4) when a template is broken or the sender is no address.
pub fn intake(pool: &PgPool, settings: &MailSettings, wake: Wake) -> Result<Intake, Failure> {
    let address = Address::parse(&settings.sender.address).map_err(|error| {
        Failure::refused(
            "invalid_sender",
            format!("EMAIL_SENDER_ADDRESS: {error}"),
            "Set it to an address such as noreply@example.com.",
        )
    })?;
    let from = Mailbox { name: Some(settings.sender.name.clone()), address };
    let composer = Composer::new(Arc::new(catalogue(settings)?), from, None);
    let suppress = settings.transport == Some(EmailTransport::Stub);
    Ok(Intake::new(pool.clone(), Arc::new(composer), settings, suppress, wake))
}

/// The way out that the settings name; `None` where there is none.
///
/// # Errors
/// Refused (4) when a file of the transport's cannot be used.
pub fn route(context: &Context<TaskerSettings>) -> Result<Option<Route>, Failure> {
    let settings = &context.settings;
    Ok(match (settings.mail.transport, &settings.smtp) {
        (Some(EmailTransport::Smtp), Some(smtp)) => {
            let credentials = smtp.credentials.clone();
            let source = Arc::new(move || credentials.clone());
            let transport = SmtpTransport::new(smtp, settings.egress.clone(), source).map_err(|error| {
                Failure::refused("smtp_settings", error.to_string(), "Correct the setting that is named.")
            })?;
            Some(Route { transport: Arc::new(transport), attempt_max: smtp.attempt_limit() })
        }
        (Some(EmailTransport::Stub), _) => {
            tracing::info!(
                "NotificationService: EMAIL_TRANSPORT is stub, every mail is recorded as suppressed"
            );
            Some(Route { transport: Arc::new(StubTransport), attempt_max: Duration::from_secs(10) })
        }
        _ => None,
    })
}
