//! The family of messages: mail, notices, webhooks, and the probe.

use voiceai_queue::Registry;
use voiceai_queue::probe::Probe;

use super::registry::{Contexts, Kind};
use super::send_email::SendEmail;
use super::webhook_event::WebhookEvent;
use crate::notify::Notice;
use crate::settings::TaskerSettings;

/// The kinds of the family.
#[must_use]
pub fn kinds(settings: &TaskerSettings) -> Vec<Kind> {
    let mut kinds = vec![Kind::of::<SendEmail>(), Kind::of::<Notice>(), Kind::of::<WebhookEvent>()];
    if settings.diagnostic_jobs {
        kinds.push(Kind::of::<Probe>());
    }
    kinds
}

/// Their handlers.
#[must_use]
pub fn register(registry: Registry, settings: &TaskerSettings, contexts: &Contexts) -> Registry {
    let registry = registry
        .register::<SendEmail>(contexts.mail.clone())
        .register::<Notice>(contexts.notices.clone())
        .register::<WebhookEvent>(contexts.webhook.clone());
    if settings.diagnostic_jobs { registry.register::<Probe>(contexts.redis.clone()) } else { registry }
}
