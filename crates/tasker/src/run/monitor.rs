//! Watching, composed: the monitor of services and the collector of figures, and who is told of a change.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_cli::Failure;
use voiceai_monitor::collect::{self, Collector, Point, Source, SourceError};
use voiceai_monitor::{Announcer, Monitor, Prober, ServiceEvent};
use voiceai_postgres::sqlx::{self, PgConnection};
use voiceai_postgres::{PgPool, Tenure};
use voiceai_queue::{Client, Job as _};
use voiceai_service::Context;
use voiceai_webhook::{NewEvent, WebhookError, emit_within};

use super::STORE_BOUND;
use crate::notify::Notice;
use crate::settings::TaskerSettings;

/// The tenant whose webhook endpoints hear of the platform itself.
pub const SYSTEM_TENANT: &str = "__system__";
/// That of every alert about the platform itself.
const SEVERITY: i32 = 5;
/// Names that stand in one notice about many services; the others are counted.
const NAMES_MAX: usize = 20;

/// Starts the monitor, where a service is watched, and the collector, where it is not switched off.
///
/// # Errors
/// Refused (4) when TLS cannot be set up.
pub(super) fn start(
    context: &Context<TaskerSettings>,
    client: &Client,
    tenure: &watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) -> Result<(), Failure> {
    let settings = &context.settings;
    let prober = prober(settings)?;
    if settings.monitor.services.is_empty() {
        tracing::info!("no service is watched: none of the settings names one");
    }
    // Also without services: what was watched before must be forgotten, and its alerts closed.
    let announcer = announcer(settings.webhook.event_bytes_max);
    let monitor = Monitor::new(context.pool.clone(), prober.clone(), settings.monitor.clone(), announcer);
    let bound = monitor.silence_max() + STORE_BOUND;
    let (vitals, told, stop) = (context.vitals.clone(), tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("health monitor", move || {
        monitor.clone().run(told.clone(), stop.clone(), vitals.register("health monitor", bound))
    });
    if settings.collector.enabled {
        start_collector(context, client, prober, tenure, stopping);
    } else {
        tracing::info!("no figures are collected: METRICS_COLLECTION_ENABLED is false");
    }
    Ok(())
}

fn start_collector(
    context: &Context<TaskerSettings>,
    client: &Client,
    prober: Prober,
    tenure: &watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) {
    let (settings, pool) = (&context.settings, &context.pool);
    let services = settings.monitor.services.clone();
    let sources: Vec<Arc<dyn Source>> = vec![
        Arc::new(collect::Services::new(services, prober, settings.monitor.concurrency)),
        Arc::new(collect::Postgres::new(pool.clone())),
        Arc::new(collect::RedisServer::new(context.redis.clone())),
        Arc::new(collect::Platform::new(pool.clone())),
        Arc::new(collect::Scaler::new(pool.clone())),
        Arc::new(Queues(client.clone())),
        Arc::new(Mail(pool.clone())),
    ];
    let collector = Collector::new(pool.clone(), settings.collector, sources);
    let bound = collector.silence_max() + STORE_BOUND;
    let (vitals, told, stop) = (context.vitals.clone(), tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("metrics collector", move || {
        collector.clone().run(told.clone(), stop.clone(), vitals.register("metrics collector", bound))
    });
}

/// What asks the watched services.
///
/// # Errors
/// Refused (4) when TLS cannot be set up.
pub fn prober(settings: &TaskerSettings) -> Result<Prober, Failure> {
    Prober::new(&settings.egress, settings.monitor.timeout).map_err(|error| {
        let message = format!("make a client for the watched services: {error}");
        Failure::refused("tls_setup", message, "Check the system's certificates and HTTP_PROXY, HTTPS_PROXY.")
    })
}

/// Tells people by a notice, and the endpoints of the tenant `__system__` by webhooks, in the transaction of the change.
fn announcer(bytes_max: usize) -> Announcer {
    Arc::new(move |connection: &mut PgConnection, events: &[ServiceEvent]| {
        Box::pin(announce(connection, events, bytes_max)) as BoxFuture<'_, _>
    })
}

async fn announce(
    connection: &mut PgConnection,
    events: &[ServiceEvent],
    bytes_max: usize,
) -> Result<(), sqlx::Error> {
    if let Some((id, notice)) = notice(events) {
        let payload = serde_json::to_value(&notice).unwrap_or_default();
        sqlx::query(
            "INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, $2, $3, $4::json) ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(Notice::QUEUE)
        .bind(Notice::KIND)
        .bind(payload.to_string())
        .execute(&mut *connection)
        .await?;
    }
    for event in events {
        let data = json!({
            "alert_id": event.alert, "service": event.service, "url": event.url, "status": event.state,
            "note": event.note, "since": event.since, "at": event.at,
        });
        let id = format!("{}:{}", event.name().replace('.', "_"), event.alert);
        let new =
            NewEvent { tenant: SYSTEM_TENANT, event_type: event.name(), id: &id, data: &data, at: event.at };
        match emit_within(&mut *connection, &new, bytes_max).await {
            Ok(_) => {}
            Err(WebhookError::Database { source, .. }) => return Err(source),
            // Whoever reads mail must hear of it all the same.
            Err(error) => tracing::error!(%error, watched = event.service, "no webhook can be made of it"),
        }
    }
    Ok(())
}

/// One notice of what came together, under an id that is the same each time.
fn notice(events: &[ServiceEvent]) -> Option<(String, Notice)> {
    let first = events.first()?;
    let id = format!("tasker:{}:{}", first.name(), first.alert);
    let about = Notice {
        event: first.name().to_owned(),
        at: Some(first.at),
        severity: Some(SEVERITY),
        ..Notice::default()
    };
    if let [one] = events {
        let (template, variables) = template(one);
        let (group, template) = (Some(one.service.clone()), Some(template.to_owned()));
        return Some((id, Notice { group, reason: one.reason(), template, variables, ..about }));
    }
    let names: Vec<_> = events.iter().take(NAMES_MAX).map(|event| event.service.as_str()).collect();
    let mut reason = format!("{} services at once: {}", events.len(), names.join(", "));
    if events.len() > NAMES_MAX {
        reason.push_str(&format!(" and {} more", events.len() - NAMES_MAX));
    }
    reason.push_str("; see `voiceai-tasker health`");
    Some((id, Notice { group: Some("many services".to_owned()), reason, ..about }))
}

/// The template of a mail about one service, and its variables.
fn template(event: &ServiceEvent) -> (&'static str, Map<String, Value>) {
    let (template, variables) = if event.recovered {
        ("ops.service_recovered", json!({ "down_since": event.since, "recovered_at": event.at }))
    } else {
        let error = event.note.as_deref().unwrap_or("no reason is known");
        let error = format!("{}: {error}", event.state.word());
        ("ops.service_down", json!({ "error": error, "since": event.since }))
    };
    let mut all = variables.as_object().cloned().unwrap_or_default();
    all.insert("service".to_owned(), json!(event.service));
    all.insert("url".to_owned(), json!(event.url));
    (template, all)
}

/// Every queue, as its own statistics say.
struct Queues(Client);

impl Source for Queues {
    fn name(&self) -> &'static str {
        "queues"
    }

    fn collect(&self) -> BoxFuture<'_, Result<Vec<Point>, SourceError>> {
        Box::pin(async move {
            let mut points = Vec::new();
            for queue in self.0.queues().await? {
                let stats = self.0.stats(&queue).await?;
                let of = |metric: &str, value| Point::count("queues", metric, value).tag("queue", &queue);
                for (state, jobs) in [
                    ("waiting", stats.waiting),
                    ("delayed", stats.delayed),
                    ("active", stats.active),
                    ("dead", stats.dead),
                ] {
                    points.push(of("jobs", jobs).tag("state", state));
                }
                points.push(of("jobs_completed", stats.completed));
                points.push(of("capacity", stats.capacity));
                let oldest = std::time::Duration::from_millis(stats.oldest_waiting_ms.unwrap_or(0));
                let oldest = Point::new("queues", "oldest_age_seconds", oldest.as_secs_f64());
                points.push(oldest.tag("queue", &queue));
                let saturation = stats.saturation.map(|share| Point::new("queues", "saturation", share));
                points.extend(saturation.map(|point| point.tag("queue", &queue)));
            }
            Ok(points)
        })
    }
}

/// How mail stands.
struct Mail(PgPool);

impl Source for Mail {
    fn name(&self) -> &'static str {
        "mail"
    }

    fn collect(&self) -> BoxFuture<'_, Result<Vec<Point>, SourceError>> {
        Box::pin(async move {
            let backlog = voiceai_mail::backlog(&self.0).await?;
            let counts = [
                ("due", backlog.due),
                ("waiting", backlog.waiting),
                ("in_progress", backlog.in_progress),
                ("dead_letters", backlog.dead_letters),
                ("unknown", backlog.unknown),
                ("paused", backlog.paused),
            ];
            let mut points: Vec<_> =
                counts.into_iter().map(|(metric, count)| Point::count("mail", metric, count)).collect();
            points.push(Point::new("mail", "oldest_age_seconds", backlog.oldest.as_secs_f64()));
            Ok(points)
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;
    use voiceai_monitor::State;

    use super::*;

    fn event(service: String) -> ServiceEvent {
        ServiceEvent {
            alert: Uuid::nil(),
            service,
            url: "http://h/health".to_owned(),
            recovered: false,
            state: State::Down,
            note: Some("Connection refused".to_owned()),
            since: Timestamp::UNIX_EPOCH,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn one_is_named_and_many_are_one_notice() {
        let (id, one) = notice(&[event("ingest".to_owned())]).expect("a notice");
        assert_eq!(id, format!("tasker:service.down:{}", Uuid::nil()));
        assert_eq!((one.event.as_str(), one.group.as_deref()), ("service.down", Some("ingest")));
        assert!(one.reason.contains("Connection refused"), "{}", one.reason);
        assert_eq!(one.template.as_deref(), Some("ops.service_down"));
        assert_eq!(one.variables["error"], "down: Connection refused");
        let many: Vec<_> = (0..25).map(|n| event(format!("s-{n}"))).collect();
        let (_, many) = notice(&many).expect("a notice");
        assert_eq!(many.group.as_deref(), Some("many services"));
        assert!(many.reason.starts_with("25 services at once: s-0, ") && many.reason.contains(" and 5 more"));
        assert!(notice(&[]).is_none());
    }
}
