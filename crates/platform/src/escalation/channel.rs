//! What a channel of the platform is sent. Pure: it says where to and what, and sends nothing.

use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;
use voiceai_runtime::Secret;
use voiceai_webhook::Keys;

use super::decide::addresses;

/// Where PagerDuty takes events.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// What is to be said.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// In words with dots: `alert.opened`.
    pub event: String,
    /// One line.
    pub title: String,
    /// More than a line, where there is more.
    pub text: String,
    /// 1 to 5, 5 being the worst.
    pub severity: Option<i64>,
    /// What it is about: the device, the service.
    pub source: String,
    /// Messages about the same thing have the same: the alert's.
    pub thing: String,
    /// True when it is over.
    pub is_over: bool,
    /// When.
    pub at: Timestamp,
    /// Everything that programs may want to know.
    pub data: Value,
}

/// How a channel is reached.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// By mail, to these.
    Mail(Vec<String>),
    /// By a post.
    Post {
        /// Where to.
        url: Url,
        /// What.
        body: Value,
        /// What it is signed with.
        keys: Option<Keys>,
    },
}

/// What a channel of this type and configuration is sent.
///
/// # Errors
/// In words: what is missing in the configuration, or that the type is not one that this service delivers. Never a secret.
pub fn delivery(channel_type: &str, config: &Value, message: &Message) -> Result<Delivery, String> {
    let kind = channel_type.trim().to_ascii_lowercase();
    let field = |names: &[&str]| {
        names.iter().find_map(|name| config[*name].as_str().map(str::trim).filter(|text| !text.is_empty()))
    };
    let url = |names: &[&str]| {
        let text = field(names)
            .ok_or_else(|| format!("the configuration of the {kind} channel has no {}", names[0]))?;
        Url::parse(text).map_err(|error| format!("{} of the {kind} channel is no URL: {error}", names[0]))
    };
    match kind.as_str() {
        "email" | "mail" => {
            let found = recipients(config);
            if found.is_empty() {
                return Err("the configuration of the email channel has no recipients".to_owned());
            }
            Ok(Delivery::Mail(found))
        }
        "webhook" | "http" => {
            let keys = match field(&["secret", "signing_secret"]) {
                None => None,
                Some(secret) => {
                    Some(Keys::new(vec![Secret::new(secret)]).map_err(|error| error.to_string())?)
                }
            };
            let body = json!({ "type": message.event, "timestamp": message.at, "data": message.data });
            Ok(Delivery::Post { url: url(&["url", "webhook_url"])?, body, keys })
        }
        "slack" => {
            let body = json!({ "text": plain(message) });
            Ok(Delivery::Post { url: url(&["webhook_url", "url"])?, body, keys: None })
        }
        "teams" => {
            let body = json!({
                "@type": "MessageCard",
                "@context": "https://schema.org/extensions",
                "summary": message.title,
                "title": message.title,
                "text": message.text,
            });
            Ok(Delivery::Post { url: url(&["webhook_url", "url"])?, body, keys: None })
        }
        "pagerduty" => {
            let key = field(&["routing_key", "integration_key"])
                .ok_or("the configuration of the pagerduty channel has no routing_key")?;
            let address = field(&["url"]).unwrap_or(PAGERDUTY);
            let url =
                Url::parse(address).map_err(|error| format!("url of the pagerduty channel: {error}"))?;
            Ok(Delivery::Post { url, body: pagerduty(key, message), keys: None })
        }
        "snmp" | "mqtt" => Err(format!("channels of the type {kind} are not delivered by this service")),
        other => Err(format!(
            "there is no channel type {other:?}; known are webhook, slack, teams, pagerduty, email"
        )),
    }
}

/// The addresses of a configuration, under whatever name and in whatever form it has them.
#[must_use]
pub fn recipients(config: &Value) -> Vec<String> {
    let mut text = String::new();
    for name in ["recipients", "to", "emails", "email", "address", "addresses"] {
        match &config[name] {
            Value::String(one) => text.push_str(&format!(",{one}")),
            Value::Array(many) => {
                for one in many.iter().filter_map(Value::as_str) {
                    text.push_str(&format!(",{one}"));
                }
            }
            _ => {}
        }
    }
    addresses(&text)
}

fn plain(message: &Message) -> String {
    let rest = if message.text.is_empty() { String::new() } else { format!("\n{}", message.text) };
    // What Slack reads as markup or as a call to everybody.
    format!("{}{rest}", message.title).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn pagerduty(key: &str, message: &Message) -> Value {
    let severity = match message.severity {
        Some(5..) => "critical",
        Some(4) => "error",
        Some(3) => "warning",
        Some(_) => "info",
        None => "error",
    };
    json!({
        "routing_key": key,
        "event_action": if message.is_over { "resolve" } else { "trigger" },
        "dedup_key": message.thing,
        "payload": {
            "summary": message.title.chars().take(1_024).collect::<String>(),
            "source": if message.source.is_empty() { "voiceai" } else { &message.source },
            "severity": severity,
            "timestamp": message.at,
            "custom_details": message.data,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(is_over: bool) -> Message {
        Message {
            event: "alert.opened".to_owned(),
            title: "CPU <hot> on d1".to_owned(),
            text: "since noon".to_owned(),
            severity: Some(5),
            source: "d1".to_owned(),
            thing: "alert:7".to_owned(),
            is_over,
            at: "2026-11-22T03:00:00Z".parse().expect("a time"),
            data: json!({ "alert_id": 7 }),
        }
    }

    fn post(kind: &str, config: Value) -> (String, Value, bool) {
        match delivery(kind, &config, &message(false)) {
            Ok(Delivery::Post { url, body, keys }) => (url.to_string(), body, keys.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_of_channel_has_its_own_words() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let (url, body, signed) = post("webhook", json!({ "url": "https://x.org/h", "secret": secret }));
        assert_eq!(
            (url.as_str(), signed, &body["type"], &body["data"]["alert_id"]),
            ("https://x.org/h", true, &json!("alert.opened"), &json!(7))
        );
        let (_, body, signed) = post("Slack", json!({ "webhook_url": "https://hooks.slack.com/x" }));
        assert_eq!((&body["text"], signed), (&json!("CPU &lt;hot&gt; on d1\nsince noon"), false));
        let (_, body, _) = post("teams", json!({ "url": "https://x.webhook.office.com/y" }));
        assert_eq!((&body["@type"], &body["title"]), (&json!("MessageCard"), &json!("CPU <hot> on d1")));
        let (url, body, _) = post("pagerduty", json!({ "routing_key": "R" }));
        assert_eq!(
            (url.as_str(), &body["event_action"], &body["dedup_key"]),
            (PAGERDUTY, &json!("trigger"), &json!("alert:7"))
        );
        assert_eq!(body["payload"]["severity"], "critical");
        let Ok(Delivery::Post { body, .. }) =
            delivery("pagerduty", &json!({ "routing_key": "R" }), &message(true))
        else {
            panic!("a post");
        };
        assert_eq!(body["event_action"], "resolve");
        let Ok(Delivery::Mail(to)) = delivery(
            "email",
            &json!({ "recipients": ["a@x.org"], "to": "b@x.org, A@x.org" }),
            &message(false),
        ) else {
            panic!("a mail");
        };
        assert_eq!(to, ["a@x.org", "b@x.org"]);
    }

    #[test]
    fn what_cannot_be_delivered_says_why_and_no_secret() {
        for (kind, config, part) in [
            ("webhook", json!({}), "no url"),
            ("webhook", json!({ "url": "not a url" }), "no URL"),
            ("webhook", json!({ "url": "https://x.org", "secret": "canary" }), "whsec_"),
            ("slack", json!({ "webhook_url": 5 }), "no webhook_url"),
            ("pagerduty", json!({}), "routing_key"),
            ("email", json!({ "to": "nobody" }), "no recipients"),
            ("mqtt", json!({}), "not delivered"),
            ("pigeon", json!({}), "pigeon"),
        ] {
            let error = delivery(kind, &config, &message(false)).expect_err(part);
            assert!(error.contains(part) && !error.contains("canary"), "{kind}: {error}");
        }
    }
}
