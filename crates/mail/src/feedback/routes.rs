use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;

use super::inbox::{Inbox, Taken};
use super::report;
use super::sns::{Message, Refused, Sns};

struct Desk {
    inbox: Inbox,
    sns: Sns,
    reports: Counter<u64>,
}

/// `POST /feedback/ses`, where an SNS topic's subscription points to. Meant for the public listener: the message's signature
/// and its topic are its credentials.
///
/// Answers 200 for what was taken in, also a second time; 400 and 403 for what is not SNS's or not of a topic that was named;
/// 503 where SNS should try again.
pub fn routes(inbox: Inbox, sns: Sns) -> Router {
    let meter = opentelemetry::global::meter("voiceai-mail");
    let reports =
        meter.u64_counter("mail.feedback").with_description("Reports of SES that were taken in.").build();
    let desk = Arc::new(Desk { inbox, sns, reports });
    Router::new().route("/feedback/ses", post(take)).with_state(desk)
}

async fn take(State(desk): State<Arc<Desk>>, body: Bytes) -> StatusCode {
    let message = match desk.sns.read(&body).await {
        Ok(message) => message,
        Err(refused) => {
            tracing::warn!(error = %refused, "feedback was not believed");
            return match refused {
                Refused::Malformed(_) => StatusCode::BAD_REQUEST,
                Refused::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::FORBIDDEN,
            };
        }
    };
    match message.kind.as_str() {
        "SubscriptionConfirmation" => match desk.sns.confirm(&message).await {
            Ok(()) => {
                tracing::info!(topic = message.topic_arn, "the subscription to SES feedback is confirmed");
                StatusCode::OK
            }
            Err(error) => {
                tracing::warn!(
                    topic = message.topic_arn,
                    error,
                    "the subscription to SES feedback cannot be confirmed"
                );
                StatusCode::SERVICE_UNAVAILABLE
            }
        },
        "UnsubscribeConfirmation" => {
            tracing::warn!(
                topic = message.topic_arn,
                "SES feedback was unsubscribed: bounces are no longer heard of"
            );
            StatusCode::OK
        }
        _ => desk.report(&message).await,
    }
}

impl Desk {
    async fn report(&self, message: &Message) -> StatusCode {
        let Some(report) = report::read(&message.message) else {
            // SES says `Successfully validated SNS topic` when a topic is chosen.
            tracing::info!(message_id = message.message_id, "a message of SNS is no report of SES");
            return StatusCode::OK;
        };
        let (inbox, id, kind) = (self.inbox.clone(), message.message_id.clone(), report.kind.clone());
        let provider_id = report.provider_id.clone();
        // A caller that hangs up must not leave a transaction behind in the middle.
        let taken = tokio::spawn(async move { inbox.take(&id, &report).await });
        let Ok(taken) = taken.await else { return StatusCode::INTERNAL_SERVER_ERROR };
        match taken {
            Ok(Taken::New { suppressed }) => {
                self.reports.add(1, &[KeyValue::new("kind", label(&kind))]);
                tracing::info!(kind, provider_id, suppressed, "feedback taken in");
                StatusCode::OK
            }
            Ok(Taken::Known) => StatusCode::OK,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, source, "feedback cannot be written down now; SNS will repeat it");
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

/// A label has few values, whatever is reported.
fn label(kind: &str) -> &'static str {
    match kind {
        "Bounce" => "bounce",
        "Complaint" => "complaint",
        "Delivery" => "delivery",
        "Reject" => "reject",
        "DeliveryDelay" => "delivery_delay",
        _ => "other",
    }
}
