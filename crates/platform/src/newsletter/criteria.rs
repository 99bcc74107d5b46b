//! A segment's criteria as a condition of SQL. Pure: columns come from a list, values are always bound.
//!
//! `{"status": "active", "subscription_tier": ["pro", "team"], "engagement_score": {"$gte": 50, "$lt": 90},
//! "subscribed_at": {"$gte": "NOW() - INTERVAL 7 DAY"}}`: every line has to hold.

use serde_json::Value;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Time,
    /// A list of texts.
    Tags,
}

/// The columns that criteria may ask about.
const COLUMNS: &[(&str, Kind)] = &[
    ("status", Kind::Text),
    ("email", Kind::Text),
    ("first_name", Kind::Text),
    ("last_name", Kind::Text),
    ("subscription_tier", Kind::Text),
    ("source", Kind::Text),
    ("interests", Kind::Tags),
    ("engagement_score", Kind::Number),
    ("emails_received", Kind::Number),
    ("emails_opened", Kind::Number),
    ("emails_clicked", Kind::Number),
    ("subscribed_at", Kind::Time),
    ("unsubscribed_at", Kind::Time),
    ("last_email_at", Kind::Time),
    ("last_opened_at", Kind::Time),
    ("last_clicked_at", Kind::Time),
    ("created_at", Kind::Time),
];

/// A condition over `s`, the subscriber, with the values for `$2`, `$3`, … as texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) sql: String,
    pub(super) values: Vec<String>,
}

/// The condition of `criteria`.
///
/// # Errors
/// What cannot be understood, by its name.
pub(super) fn condition(criteria: &Value) -> Result<Condition, String> {
    let Value::Object(lines) = criteria else {
        return Err("criteria: an object is wanted, such as {\"status\": \"active\"}".to_owned());
    };
    let mut made = Condition { sql: "true".to_owned(), values: Vec::new() };
    for (column, wanted) in lines {
        let Some((name, kind)) = COLUMNS.iter().find(|(name, _)| name == column) else {
            let known: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
            return Err(format!("criteria: `{column}` is none of {}", known.join(", ")));
        };
        line(&mut made, name, *kind, wanted).map_err(|reason| format!("criteria: {column}: {reason}"))?;
    }
    Ok(made)
}

fn line(made: &mut Condition, column: &str, kind: Kind, wanted: &Value) -> Result<(), String> {
    match wanted {
        Value::Object(operators) if operators.is_empty() => {
            Err("an operator is wanted, such as $gte".to_owned())
        }
        Value::Object(operators) => {
            operators.iter().try_for_each(|(operator, value)| apply(made, column, kind, operator, value))
        }
        Value::Array(_) => apply(made, column, kind, "$in", wanted),
        Value::Null => {
            made.sql.push_str(&format!(" AND s.{column} IS NULL"));
            Ok(())
        }
        value => apply(made, column, kind, "$eq", value),
    }
}

fn apply(
    made: &mut Condition,
    column: &str,
    kind: Kind,
    operator: &str,
    value: &Value,
) -> Result<(), String> {
    let compare = match operator {
        "$eq" => "=",
        "$ne" => "IS DISTINCT FROM",
        "$gt" => ">",
        "$gte" => ">=",
        "$lt" => "<",
        "$lte" => "<=",
        "$in" | "$nin" => return list(made, column, kind, operator == "$in", value),
        "$exists" => {
            let exists = value.as_bool().ok_or("$exists: true or false is wanted")?;
            let test = if exists { "IS NOT NULL" } else { "IS NULL" };
            made.sql.push_str(&format!(" AND s.{column} {test}"));
            return Ok(());
        }
        other => {
            return Err(format!("`{other}` is none of $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $exists"));
        }
    };
    let place = bind(made, kind, value)?;
    match kind {
        Kind::Tags if operator == "$eq" => made.sql.push_str(&format!(" AND {place} = ANY(s.{column})")),
        Kind::Tags if operator == "$ne" => {
            made.sql.push_str(&format!(" AND NOT COALESCE({place} = ANY(s.{column}), false)"));
        }
        Kind::Tags => return Err(format!("{operator} is not for a list of tags")),
        _ => made.sql.push_str(&format!(" AND s.{column} {compare} {place}")),
    }
    Ok(())
}

fn list(made: &mut Condition, column: &str, kind: Kind, is_in: bool, value: &Value) -> Result<(), String> {
    let Value::Array(values) = value else { return Err("a list is wanted".to_owned()) };
    if values.len() > 100 {
        return Err(format!("at most 100 values are taken, not {}", values.len()));
    }
    let mut places = Vec::new();
    for value in values {
        places.push(bind(made, kind, value)?);
    }
    let places = places.join(", ");
    let element = match kind {
        Kind::Text | Kind::Tags => "text",
        Kind::Number => "numeric",
        Kind::Time => "timestamptz",
    };
    let test = match kind {
        Kind::Tags => format!("COALESCE(s.{column} && ARRAY[{places}]::text[], false)"),
        _ => format!("COALESCE(s.{column} = ANY(ARRAY[{places}]::{element}[]), false)"),
    };
    made.sql.push_str(&format!(" AND {}{test}", if is_in { "" } else { "NOT " }));
    Ok(())
}

/// Takes a value and answers the expression that stands for it.
fn bind(made: &mut Condition, kind: Kind, value: &Value) -> Result<String, String> {
    let (text, expression): (String, fn(&str) -> String) = match (kind, value) {
        (Kind::Text | Kind::Tags, Value::String(text)) => (text.clone(), |place| place.to_owned()),
        (Kind::Number, Value::Number(number)) => (number.to_string(), |place| format!("{place}::numeric")),
        (Kind::Time, Value::String(text)) => match ago(text) {
            Some(span) => (span, |place| format!("(now() - {place}::interval)")),
            None => {
                text.parse::<jiff::Timestamp>().map_err(|_| {
                    format!("`{text}` is no time: 2026-11-22T00:00:00Z or NOW() - INTERVAL 7 DAY are")
                })?;
                (text.clone(), |place| format!("{place}::timestamptz"))
            }
        },
        (Kind::Text | Kind::Tags, other) => return Err(format!("a text is wanted, not {other}")),
        (Kind::Number, other) => return Err(format!("a number is wanted, not {other}")),
        (Kind::Time, other) => return Err(format!("a time is wanted, not {other}")),
    };
    made.values.push(text);
    Ok(expression(&format!("${}", made.values.len() + 1)))
}

/// `NOW() - INTERVAL 7 DAY` as `7 day`; also with quotes and in the plural.
fn ago(text: &str) -> Option<String> {
    let text = text.to_ascii_uppercase().replace('\'', "");
    let rest = text.strip_prefix("NOW()")?.trim_start().strip_prefix('-')?.trim_start();
    if rest.is_empty() {
        return None;
    }
    let mut words = rest.strip_prefix("INTERVAL")?.split_whitespace();
    let count: u32 = words.next()?.parse().ok().filter(|count| *count <= 100_000)?;
    let unit = words.next()?;
    let unit = unit.strip_suffix('S').unwrap_or(unit);
    if words.next().is_some() || !["MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "YEAR"].contains(&unit) {
        return None;
    }
    Some(format!("{count} {}", unit.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(criteria: &Value) -> (String, Vec<String>) {
        let condition = condition(criteria).unwrap();
        (condition.sql, condition.values)
    }

    #[test]
    fn every_line_has_to_hold() {
        assert_eq!(made(&json!({})), ("true".into(), vec![]));
        let (sql, values) = made(&json!({
            "engagement_score": {"$gte": 70, "$lt": 90.5}, "status": "active", "subscription_tier": {"$in": ["pro", "team"]},
            "subscribed_at": {"$gte": "NOW() - INTERVAL 7 DAY"}, "interests": ["a", "b"], "source": null,
        }));
        // serde_json keeps an object's lines in the order of their names.
        assert!(sql.contains("s.engagement_score >= $") && sql.contains("s.status = $"), "{sql}");
        assert!(sql.contains("::numeric AND s.engagement_score < $"), "{sql}");
        assert!(sql.contains("s.subscription_tier = ANY(ARRAY[$"), "{sql}");
        assert!(sql.contains("s.subscribed_at >= (now() - $") && sql.contains("s.source IS NULL"), "{sql}");
        assert!(sql.contains("COALESCE(s.interests && ARRAY[$"), "{sql}");
        assert_eq!(values.len(), 8);
        assert!(values.contains(&"7 day".to_owned()) && values.contains(&"90.5".to_owned()));
        assert!(!sql.contains("active"), "values are bound, never written into the statement: {sql}");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (criteria, says) in [
            (json!([]), "an object"),
            (json!({"password": "x"}), "`password` is none of"),
            (json!({"status; DROP TABLE x": "y"}), "is none of"),
            (json!({"status": {"$regex": "a"}}), "`$regex`"),
            (json!({"status": 7}), "a text is wanted"),
            (json!({"engagement_score": "7"}), "a number is wanted"),
            (json!({"created_at": "yesterday"}), "is no time"),
            (json!({"created_at": "NOW() - INTERVAL 1 DAY; DROP TABLE x"}), "is no time"),
            (json!({"status": {}}), "an operator"),
            (json!({"interests": {"$gt": "a"}}), "not for a list"),
            (json!({"status": {"$in": "a"}}), "a list is wanted"),
        ] {
            let reason = condition(&criteria).unwrap_err();
            assert!(reason.contains(says), "{reason}");
        }
    }

    #[test]
    fn spans_back_from_now() {
        assert_eq!(ago("NOW() - INTERVAL 7 DAY").as_deref(), Some("7 day"));
        assert_eq!(ago("now() - interval '30 days'").as_deref(), Some("30 day"));
        for bad in [
            "NOW()",
            "NOW() -",
            "NOW() - INTERVAL DAY",
            "NOW() - INTERVAL 7 CENTURY",
            "NOW() - INTERVAL -1 DAY",
        ] {
            assert_eq!(ago(bad), None, "{bad}");
        }
    }
}
