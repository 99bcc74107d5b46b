//! Certificates: the revocation list of the devices' authority, the end of what is past its time, and warnings before that, for
//! device certificates and for the TLS endpoints that the settings list.

mod authority;
mod crl;
mod endpoint;
mod publish;
mod rows;
mod settings;
mod standing;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_egress::Rule;
use voiceai_postgres::PgPool;
use voiceai_queue::{Attempt, Job, JobError, Outcome};
use voiceai_runtime::Secret;

pub use authority::{Authority, AuthorityError};
pub use crl::{Revoked, build, serial};
pub use endpoint::{LookError, Shown, look};
pub use publish::{PublishError, publish};
pub use settings::CertificateSettings;
pub use standing::{RevocationList, Standing, file_good_until, look as standing};

use crate::{Needs, PlatformError, missing};
use rows::Ending;

const NEEDS: Needs = Needs(&[(
    "device_certificates",
    &[
        "id",
        "tenant_id",
        "device_id",
        "cert_pem",
        "fingerprint_sha256",
        "issuer",
        "serial_number",
        "status",
        "not_after",
        "revoked_at",
        "revoked_reason",
        "updated_at",
    ],
)]);
const ALERTS: Needs = Needs(&[(
    "fleet_alert",
    &[
        "tenant_id",
        "device_id",
        "alert_type",
        "fingerprint",
        "status",
        "severity",
        "summary",
        "details",
        "closed_at",
    ],
)]);
/// Endpoints that are looked at at the same time, and how long each may take to connect.
const AT_ONCE: usize = 16;
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Longest time for the address that is told of a new list.
const RELOAD_MAX: Duration = Duration::from_secs(10);

/// What the job works with.
#[derive(Clone, Debug)]
pub struct CertificateContext {
    /// Where the rows are.
    pub pool: PgPool,
    /// The way out.
    pub rule: Rule,
    /// Files, days, endpoints.
    pub settings: CertificateSettings,
}

/// `certificates.upkeep`: one round over everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateUpkeep {}

/// The list could not be made or put in place.
#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error("the revocation list was not made")]
    Authority(#[from] AuthorityError),
    #[error("the revocation list was not put in place")]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error("the signing of the revocation list ended early")]
    Ended(#[from] tokio::task::JoinError),
}

impl Job for CertificateUpkeep {
    const KIND: &'static str = "certificates.upkeep";
    const QUEUE: &'static str = crate::escalation::DUTY_QUEUE;
    type Context = CertificateContext;

    async fn run(&self, context: &CertificateContext, _attempt: &Attempt) -> Result<Outcome, JobError> {
        let now = Timestamp::now();
        let endpoints = match endpoints(context, now).await {
            Ok(endpoints) => endpoints,
            Err(error) => return error.into_outcome(Self::KIND),
        };
        let devices = match missing(&context.pool, NEEDS).await {
            Ok(None) => devices(context, now).await,
            Ok(Some(missing)) => {
                tracing::info!(kind = Self::KIND, table = missing.table, "table absent, skipped");
                Ok(missing.result())
            }
            Err(error) => Err(error.into()),
        };
        match devices {
            Ok(mut result) => {
                result["endpoints"] = endpoints;
                Ok(Outcome::DoneWith(result))
            }
            Err(ListError::Platform(error)) => error.into_outcome(Self::KIND),
            // Files that a person must mend first.
            Err(error @ ListError::Authority(_)) => Err(JobError::discard(error)),
            Err(error) => Err(JobError::retry(error)),
        }
    }
}

/// Everything about device certificates. The list and the warnings do not wait for each other to succeed: without a new list no device
/// connects after a while, and a broken authority keeps nobody from being warned.
async fn devices(context: &CertificateContext, now: Timestamp) -> Result<Value, ListError> {
    let list = revocation_list(context, now).await;
    let mut result = ends(context, now).await?;
    result["revocation_list"] = list?;
    Ok(result)
}

/// What has ended, and what will.
async fn ends(context: &CertificateContext, now: Timestamp) -> Result<Value, PlatformError> {
    let pool = &context.pool;
    let alerts = missing(pool, ALERTS).await?.is_none();
    let expired = rows::expire(pool).await?;
    let (mut warned, mut failed) = (0_u64, Vec::new());
    for ending in rows::ending(pool, context.settings.warning_days).await? {
        match rows::warn(pool, &ending, now, alerts).await {
            Ok(new) => warned += u64::from(new),
            Err(error) if error.is_unavailable() => return Err(error),
            // One row that cannot be told of keeps no other from it.
            Err(error) => failed.push(format!("{}: {}", ending.host, crate::text(&error))),
        }
    }
    let closed = if alerts { rows::close_alerts(pool).await? } else { 0 };
    rows::prune(pool).await?;
    match failed.first() {
        None => Ok(json!({ "expired": expired, "warned": warned, "alerts_closed": closed })),
        Some(first) => {
            let reason = format!("{} could not be warned of, among them {first}", failed.len());
            Err(PlatformError::invalid("certificates", reason))
        }
    }
}

async fn revocation_list(context: &CertificateContext, now: Timestamp) -> Result<Value, ListError> {
    let settings = &context.settings;
    let skipped = |reason: String| {
        tracing::warn!(reason, "no revocation list is made");
        Ok(json!({ "skipped": true, "reason": reason }))
    };
    let (Some(certificate), Some(key)) = (&settings.ca_certificate, &settings.ca_key) else {
        let missing =
            if settings.ca_certificate.is_none() { "DEVICE_CA_CERT_PATH" } else { "DEVICE_CA_KEY_PATH" };
        return skipped(format!("{missing} is not set"));
    };
    for (name, path) in [("DEVICE_CA_CERT_PATH", certificate), ("DEVICE_CA_KEY_PATH", key)] {
        if !tokio::fs::try_exists(path).await.unwrap_or(true) {
            return skipped(format!("{name}: there is no file {}", path.display()));
        }
    }
    let (list, unreadable) = rows::revoked(&context.pool).await?;
    if !unreadable.is_empty() {
        tracing::error!(rows = unreadable.join("; "), "revoked certificates are not in the list");
    }
    let authority = {
        let (certificate, key) = (certificate.clone(), key.clone());
        tokio::task::spawn_blocking(move || Authority::read(&certificate, &key)).await??
    };
    let issuer = authority.subject().to_string();
    let number = rows::next_number(&context.pool, &issuer).await?;
    let lifetime = SignedDuration::try_from(settings.crl_lifetime).unwrap_or(SignedDuration::from_hours(2));
    let (path, count) = (settings.crl_path.clone(), list.len());
    tokio::task::spawn_blocking(move || -> Result<(), ListError> {
        let text = build(&authority, &list, number, now, lifetime)?;
        Ok(publish(&path, &text)?)
    })
    .await??;
    rows::placed(&context.pool, &issuer, number, now + lifetime, count).await?;
    let reloaded = match &settings.crl_reload {
        None => Value::Null,
        Some(url) => json!(reload(&context.rule, url).await),
    };
    let (path, next) = (settings.crl_path.display().to_string(), now + lifetime);
    tracing::info!(path, revoked = count, number, "revocation list published");
    Ok(json!({ "path": path, "revoked": count, "number": number, "next_update": next,
               "unreadable": unreadable, "reloaded": reloaded }))
}

/// Tells whoever reads the list that there is a new one. That it cannot be told is only logged: it reads the file again by itself.
async fn reload(rule: &Rule, url: &Secret) -> bool {
    let told = async {
        let client = voiceai_egress::http_client(rule).timeout(RELOAD_MAX).build()?;
        client.put(url.expose()).send().await?.error_for_status()
    };
    match told.await {
        Ok(_) => true,
        Err(error) => {
            // The address may hold a password.
            tracing::warn!(error = %error.without_url(), "CRL_RELOAD_URL was not told of the new revocation list");
            false
        }
    }
}

async fn endpoints(context: &CertificateContext, now: Timestamp) -> Result<Value, PlatformError> {
    let looks = stream::iter(context.settings.endpoints.clone()).map(|endpoint| async move {
        let seen = look(&endpoint, &context.rule, LOOK_MAX).await;
        (endpoint, seen)
    });
    let seen: Vec<_> = looks.buffer_unordered(AT_ONCE).collect().await;
    let (mut warned, mut unreachable, mut looked) = (0_u64, Vec::new(), 0_u64);
    let horizon = SignedDuration::from_hours(24 * i64::from(context.settings.warning_days));
    for (endpoint, seen) in seen {
        let shown = match seen {
            Ok(shown) => shown,
            Err(error) => {
                let error = crate::text(&error);
                tracing::warn!(endpoint, error, "the certificate of an endpoint cannot be looked at");
                unreachable.push(json!({ "endpoint": endpoint, "error": error }));
                continue;
            }
        };
        looked += 1;
        if shown.not_after.duration_since(now) > horizon {
            continue;
        }
        let ending = Ending {
            fingerprint: shown.fingerprint,
            group: "endpoints".to_owned(),
            host: endpoint,
            issuer: shown.issuer,
            not_after: shown.not_after,
            device: None,
        };
        warned += u64::from(rows::warn(&context.pool, &ending, now, false).await?);
    }
    Ok(json!({ "looked_at": looked, "warned": warned, "unreachable": unreachable }))
}
