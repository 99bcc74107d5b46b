//! Whom a notice goes to: those who run the platform, named addresses, or a tenant by its own preferences.

use std::time::Duration;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use voiceai_platform::escalation::{addresses, channel};
use voiceai_platform::{Needs, PlatformError, missing};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};

use super::job::Notice;

const TEAM: Needs = Needs(&[("\"Team\"", &["id", "notifications"])]);
const RULES: Needs = Needs(&[
    ("notification_channels", &["channel_id", "tenant_id", "channel_type", "config", "is_enabled"]),
    (
        "notification_routing_rules",
        &[
            "channel_id",
            "tenant_id",
            "min_severity",
            "alert_type",
            "deliver_on",
            "throttle_minutes",
            "is_enabled",
        ],
    ),
]);
const TENANTS: Needs = Needs(&[("tenants", &["tenant_id", "contact_email"])]);

/// Whom a notice is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Audience {
    Operators,
    Named(Vec<String>),
    Tenant(String),
}

impl Audience {
    pub(super) fn of(notice: &Notice) -> Self {
        if !notice.to.is_empty() {
            return Self::Named(notice.to.clone());
        }
        match notice.tenant.as_deref().map(str::trim).filter(|tenant| !tenant.is_empty()) {
            Some(tenant) => Self::Tenant(tenant.to_owned()),
            None => Self::Operators,
        }
    }

    /// The same for the same people; empty for those who run the platform.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Operators => String::new(),
            Self::Tenant(tenant) => format!("tenant:{tenant}"),
            Self::Named(all) => {
                let mut all: Vec<String> = all.iter().map(|one| one.trim().to_lowercase()).collect();
                all.sort();
                all.dedup();
                let digest = Sha256::digest(all.join(",").as_bytes());
                format!("to:{}", digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect::<String>())
            }
        }
    }
}

/// What a tenant wants of a notice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// By mail to these.
    pub(super) mail: Vec<String>,
    /// By a post to these channels.
    pub(super) channels: Vec<i64>,
    /// True when it has preferences, and they leave this notice out.
    pub(super) unwanted: bool,
    /// How long mail of this kind rests, where the tenant says so.
    pub(super) throttle: Option<Duration>,
}

/// One rule with its channel.
#[derive(Debug, Clone)]
struct Rule {
    channel: i64,
    channel_type: String,
    config: Value,
    severity_min: Option<i64>,
    event: Option<String>,
    throttle: Duration,
}

/// What `tenant` wants of `notice`: its team's preferences, else the rules of its channels, else its contact's address.
pub(super) async fn wish(pool: &PgPool, tenant: &str, notice: &Notice) -> Result<Wish, PlatformError> {
    let tried = || PlatformError::database("read a tenant's preferences");
    if missing(pool, TEAM).await?.is_none() {
        let found: Option<Option<Value>> =
            sqlx::query_scalar(r#"SELECT to_jsonb(notifications) FROM "Team" WHERE id::text = $1"#)
                .bind(tenant)
                .fetch_optional(pool)
                .await
                .map_err(tried())?;
        if let Some(wish) = found.flatten().and_then(|json| of_team(&json, notice)) {
            return Ok(wish);
        }
    }
    if missing(pool, RULES).await?.is_none() {
        let rules = rules(pool, tenant).await?;
        if !rules.is_empty() {
            return Ok(of_rules(&rules, notice));
        }
    }
    let mut wish = Wish::default();
    if missing(pool, TENANTS).await?.is_none() {
        let found: Option<Option<String>> =
            sqlx::query_scalar("SELECT contact_email::text FROM tenants WHERE tenant_id::text = $1")
                .bind(tenant)
                .fetch_optional(pool)
                .await
                .map_err(tried())?;
        wish.mail = addresses(&found.flatten().unwrap_or_default());
    }
    Ok(wish)
}

/// Rules that speak for single devices or sites concern alerts alone, and so do those for other events than the opening.
async fn rules(pool: &PgPool, tenant: &str) -> Result<Vec<Rule>, PlatformError> {
    let tried = || PlatformError::database("read a tenant's routing rules");
    let rows = sqlx::query(
        "SELECT c.channel_id::bigint, c.channel_type::text, c.config, r.min_severity::bigint, r.alert_type::text, \
             GREATEST(COALESCE(r.throttle_minutes, 0), 0)::bigint \
         FROM notification_routing_rules r JOIN notification_channels c ON c.channel_id = r.channel_id AND c.is_enabled \
         WHERE r.tenant_id::text = $1 AND c.tenant_id::text = $1 AND r.is_enabled \
           AND 'OPEN' = ANY (COALESCE(r.deliver_on::text[], ARRAY['OPEN'])) \
           AND COALESCE(to_jsonb(r) ->> 'device_tag_key', '') = '' \
           AND COALESCE(to_jsonb(r) ->> 'site_ids', '[]') = '[]' AND COALESCE(to_jsonb(r) ->> 'device_prefixes', '[]') = '[]' \
         ORDER BY COALESCE((to_jsonb(r) ->> 'priority')::bigint, 100), c.channel_id",
    )
    .bind(tenant)
    .fetch_all(pool)
    .await
    .map_err(tried())?;
    rows.iter()
        .map(|row| {
            let minutes: i64 = row.try_get(5).map_err(tried())?;
            Ok(Rule {
                channel: row.try_get(0).map_err(tried())?,
                channel_type: row.try_get(1).map_err(tried())?,
                config: row.try_get::<Option<Value>, _>(2).map_err(tried())?.unwrap_or_default(),
                severity_min: row.try_get(3).map_err(tried())?,
                event: row
                    .try_get::<Option<String>, _>(4)
                    .map_err(tried())?
                    .filter(|event| !event.is_empty()),
                throttle: Duration::from_secs(minutes.unsigned_abs() * 60),
            })
        })
        .collect()
}

fn of_rules(rules: &[Rule], notice: &Notice) -> Wish {
    let mut wish = Wish { unwanted: true, ..Wish::default() };
    for rule in rules {
        let is_severe =
            rule.severity_min.is_none_or(|least| notice.severity.is_none_or(|have| i64::from(have) >= least));
        let is_meant = rule.event.as_deref().is_none_or(|event| event.eq_ignore_ascii_case(&notice.event));
        if !is_severe || !is_meant {
            continue;
        }
        wish.unwanted = false;
        if rule.throttle > Duration::ZERO {
            wish.throttle = Some(wish.throttle.map_or(rule.throttle, |known| known.min(rule.throttle)));
        }
        if matches!(rule.channel_type.to_ascii_lowercase().as_str(), "email" | "mail") {
            for one in channel::recipients(&rule.config) {
                if !wish.mail.iter().any(|known| known.eq_ignore_ascii_case(&one)) {
                    wish.mail.push(one);
                }
            }
        } else if !wish.channels.contains(&rule.channel) {
            wish.channels.push(rule.channel);
        }
    }
    wish
}

/// What a team's JSON says: recipients, a threshold, events that it wants or does not. `None` where it says nothing about recipients.
fn of_team(json: &Value, notice: &Notice) -> Option<Wish> {
    let mail = channel::recipients(json);
    if mail.is_empty() {
        return None;
    }
    let words = |names: &[&str]| -> Option<Vec<String>> {
        let list = names.iter().find_map(|name| json[*name].as_array())?;
        Some(list.iter().filter_map(Value::as_str).map(str::to_ascii_lowercase).collect())
    };
    let event = notice.event.to_ascii_lowercase();
    let number = |names: &[&str]| names.iter().find_map(|name| json[*name].as_i64());
    let is_off = json["enabled"].as_bool() == Some(false)
        || words(&["muted", "mutedEvents", "muted_events"]).is_some_and(|muted| muted.contains(&event))
        || words(&["events"]).is_some_and(|wanted| !wanted.contains(&event))
        || number(&["minSeverity", "min_severity"])
            .is_some_and(|least| notice.severity.is_some_and(|have| i64::from(have) < least));
    let throttle = number(&["throttleMinutes", "throttle_minutes"]).filter(|minutes| *minutes >= 0);
    Some(Wish {
        mail: if is_off { Vec::new() } else { mail },
        channels: Vec::new(),
        unwanted: is_off,
        throttle: throttle.map(|minutes| Duration::from_secs(minutes.unsigned_abs() * 60)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notice(event: &str, severity: Option<i32>) -> Notice {
        Notice { event: event.to_owned(), reason: "r".to_owned(), severity, ..Notice::default() }
    }

    #[test]
    fn the_same_people_are_one_audience() {
        let named = |to: &[&str]| {
            Audience::of(&Notice { to: to.iter().map(ToString::to_string).collect(), ..notice("e", None) })
                .key()
        };
        assert_eq!(named(&["a@x.org", "B@x.org"]), named(&["b@X.org", "a@x.org", "a@x.org"]));
        assert_ne!(named(&["a@x.org"]), named(&["b@x.org"]));
        assert_eq!(Audience::of(&notice("e", None)).key(), "");
        assert_eq!(
            Audience::of(&Notice { tenant: Some("t1".into()), ..notice("e", None) }).key(),
            "tenant:t1"
        );
    }

    #[test]
    fn a_teams_preferences_say_who_what_and_how_often() {
        let json =
            json!({ "recipients": ["a@x.org"], "minSeverity": 3, "muted": ["Scaled"], "throttleMinutes": 5 });
        let of = |event, severity| of_team(&json, &notice(event, severity)).expect("preferences");
        assert_eq!(of("failed", Some(3)).mail, ["a@x.org"]);
        assert_eq!(of("failed", None).throttle, Some(Duration::from_secs(300)));
        assert!(of("failed", Some(2)).unwanted && of("failed", Some(2)).mail.is_empty());
        assert!(of("scaled", Some(5)).unwanted);
        assert!(
            of_team(&json!({ "recipients": "a@x.org", "events": ["x"] }), &notice("y", None))
                .expect("some")
                .unwanted
        );
        assert!(
            of_team(&json!({ "recipients": "a@x.org", "enabled": false }), &notice("y", None))
                .expect("some")
                .unwanted
        );
        assert_eq!(of_team(&json!({ "minSeverity": 3 }), &notice("y", None)), None);
    }

    #[test]
    fn rules_say_it_by_channel() {
        let rule = |channel, kind: &str, severity_min, event: Option<&str>, minutes: u64| Rule {
            channel,
            channel_type: kind.to_owned(),
            config: json!({ "to": format!("c{channel}@x.org") }),
            severity_min,
            event: event.map(str::to_owned),
            throttle: Duration::from_secs(minutes * 60),
        };
        let rules = [
            rule(1, "email", None, None, 10),
            rule(2, "slack", Some(4), None, 0),
            rule(2, "slack", None, Some("webhook.disabled"), 5),
        ];
        let quiet = of_rules(&rules, &notice("failed", Some(2)));
        assert_eq!(
            (quiet.mail.as_slice(), quiet.channels.as_slice()),
            (&["c1@x.org".to_owned()][..], &[][..])
        );
        let loud = of_rules(&rules, &notice("webhook.disabled", Some(5)));
        assert_eq!((loud.channels.as_slice(), loud.throttle), (&[2][..], Some(Duration::from_secs(300))));
        assert!(of_rules(&rules[1..2], &notice("failed", Some(3))).unwanted);
    }
}
