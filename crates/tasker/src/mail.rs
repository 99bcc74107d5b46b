//! What mail is made of here: the composer, the intake and the way out, for the service and for commands alike.

use std::sync::Arc;
use std::time::Duration;

use voiceai_aws::{AwsAccess, SesClient};
use voiceai_cli::Failure;
use voiceai_config::catalogue::transport::{EmailTransport, SMTP_PASS, SMTP_USER};
use voiceai_listener::axum::Router;
use voiceai_mail::feedback::{self, Certificates, Https, Inbox, Sns};
use voiceai_mail::intake::{Composer, Intake, UnsubscribeLink};
use voiceai_mail::message::Mailbox;
use voiceai_mail::settings::MailSettings;
use voiceai_mail::suppression::{self, Links};
use voiceai_mail::template::Catalogue;
use voiceai_mail::transport::{
    Credentials, SesSettings, SesTransport, SmtpTransport, StubTransport, Transport,
};
use voiceai_mail::{Address, Wake};
use voiceai_postgres::PgPool;
use voiceai_service::{Context, Values};

use crate::ses::Ses;
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
    let link = links(settings)?.map(|links| -> UnsubscribeLink {
        Arc::new(move |address, tenant, class| links.link(address, tenant, class))
    });
    let composer = Composer::new(Arc::new(catalogue(settings)?), from, link);
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
            let (secrets, reader) = (context.secrets.clone(), context.secrets.clone());
            let source = Arc::new(move || credentials(&secrets.current()));
            let transport = SmtpTransport::new(smtp, settings.egress.clone(), source).map_err(|error| {
                Failure::refused("smtp_settings", error.to_string(), "Correct the setting that is named.")
            })?;
            // A login that is refused may be one whose password was just changed.
            let transport = transport.refreshing(Arc::new(move || {
                let secrets = reader.clone();
                Box::pin(async move {
                    let used = secrets.current();
                    let _newer = secrets.newer_than(&used).await;
                })
            }));
            Some(Route { transport: Arc::new(transport), attempt_max: smtp.attempt_limit() })
        }
        (Some(EmailTransport::Stub), _) => {
            tracing::info!(
                "NotificationService: EMAIL_TRANSPORT is stub, every mail is recorded as suppressed"
            );
            Some(Route { transport: Arc::new(StubTransport), attempt_max: Duration::from_secs(10) })
        }
        (Some(EmailTransport::Ses), _) => {
            let access = AwsAccess { endpoint: settings.ses.endpoint.clone(), ..settings.aws.clone() };
            let client = Ses(SesClient::new(access, SesSettings::CALL_LIMIT));
            let transport = SesTransport::new(Arc::new(client), settings.ses.clone());
            Some(Route { transport: Arc::new(transport), attempt_max: SesSettings::attempt_limit() })
        }
        _ => None,
    })
}

/// The login as it stands now.
fn credentials(values: &Values) -> Option<Credentials> {
    let (user, password) = (values.get(&SMTP_USER)?, values.get(&SMTP_PASS)?);
    Some(Credentials { user: user.expose().to_owned(), password })
}

/// The links that end a subscription; `None` where no public address is set.
fn links(settings: &MailSettings) -> Result<Option<Links>, Failure> {
    let Some((url, secret)) = &settings.unsubscribe else { return Ok(None) };
    let refused = |error: suppression::LinkError| {
        Failure::refused("unsubscribe_links", error.to_string(), "Correct the setting that is named.")
    };
    Links::new(url, secret).map(Some).map_err(refused)
}

/// The routes of the public listener: the links that end a subscription, and the reports of SES.
///
/// # Errors
/// Refused (4) when a setting is broken.
pub fn public_routes(pool: &PgPool, settings: &TaskerSettings) -> Result<Router, Failure> {
    let mut routes = Router::new();
    if let Some(links) = links(&settings.mail)? {
        routes = routes.merge(suppression::routes(pool.clone(), links));
    }
    if !settings.feedback_topics.is_empty() {
        let certificates = Certificates::new(Arc::new(Https::new(settings.egress.clone())));
        let sns = Sns::new(settings.feedback_topics.clone(), certificates);
        routes = routes.merge(feedback::routes(Inbox::new(pool.clone()), sns));
    }
    Ok(routes)
}
