use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{
    ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use voiceai_postgres::PgPool;

use super::links::Links;
use super::store::{Entry, Reason, record};

/// What the routes work with.
struct Desk {
    pool: PgPool,
    links: Links,
}

/// The routes behind the links: `POST` ends a subscription at once and without a question (RFC 8058); `GET` shows a page with a
/// button, because mail scanners open every link. Meant for the public listener.
pub fn routes(pool: PgPool, links: Links) -> Router {
    let desk = Arc::new(Desk { pool, links });
    Router::new().route("/unsubscribe/{token}", get(ask).post(end)).with_state(desk)
}

async fn ask(State(desk): State<Arc<Desk>>, Path(token): Path<String>, headers: HeaderMap) -> Response {
    let words = Words::of(&headers);
    if desk.links.read(&token).is_none() {
        return page(StatusCode::NOT_FOUND, words, words.unknown, "");
    }
    let button = format!("<form method=\"post\"><button type=\"submit\">{}</button></form>", words.button);
    page(StatusCode::OK, words, words.question, &button)
}

async fn end(State(desk): State<Arc<Desk>>, Path(token): Path<String>, headers: HeaderMap) -> Response {
    let words = Words::of(&headers);
    let Some(who) = desk.links.read(&token) else {
        return page(StatusCode::NOT_FOUND, words, words.unknown, "");
    };
    let entry = Entry {
        address: &who.address,
        tenant: who.tenant.as_deref(),
        class: Some(who.class),
        reason: Reason::Unsubscribe,
        detail: "by the link in a mail",
        origin: "unsubscribe link",
        lasts: Reason::Unsubscribe.lasts(),
    };
    match record(&desk.pool, &entry).await {
        Ok(()) => {
            tracing::info!(class = %who.class, "a recipient has unsubscribed");
            page(StatusCode::OK, words, words.done, "")
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, source, "an unsubscription cannot be written down now");
            page(StatusCode::SERVICE_UNAVAILABLE, words, words.later, "")
        }
    }
}

fn page(status: StatusCode, words: &Words, text: &str, more: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"{}\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\"><meta name=\"robots\" content=\"noindex\"><title>{}</title></head><body><main><p>{text}</p>{more}</main>\
         </body></html>",
        words.language, words.title
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; form-action 'self'; frame-ancestors 'none'"),
    ];
    (status, headers, html).into_response()
}

struct Words {
    language: &'static str,
    title: &'static str,
    question: &'static str,
    button: &'static str,
    done: &'static str,
    unknown: &'static str,
    later: &'static str,
}

const ENGLISH: Words = Words {
    language: "en",
    title: "Unsubscribe",
    question: "Do you want to stop receiving these messages?",
    button: "Unsubscribe",
    done: "You will not receive these messages any more.",
    unknown: "This link is not valid.",
    later: "This does not work at the moment. Please try again in a few minutes.",
};

const GERMAN: Words = Words {
    language: "de",
    title: "Abmelden",
    question: "Möchten Sie diese Nachrichten nicht mehr erhalten?",
    button: "Abmelden",
    done: "Sie erhalten diese Nachrichten nicht mehr.",
    unknown: "Dieser Link ist nicht gültig.",
    later: "Das geht gerade nicht. Bitte versuchen Sie es in einigen Minuten noch einmal.",
};

impl Words {
    fn of(headers: &HeaderMap) -> &'static Self {
        let asked = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let first = asked.split(',').next().unwrap_or_default().trim().to_ascii_lowercase();
        if first == "de" || first.starts_with("de-") || first.starts_with("de;") { &GERMAN } else { &ENGLISH }
    }
}
