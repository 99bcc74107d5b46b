use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Class;

/// What stands in a template's `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// What the mail is for.
    pub(super) class: Class,
    /// One sentence for operators.
    pub(super) description: String,
    /// Whether the mail offers to end the subscription. Never for the class `auth`.
    #[serde(default)]
    pub(super) unsubscribe: bool,
    /// What the texts may use.
    #[serde(default)]
    pub(super) variables: BTreeMap<String, Variable>,
    /// Values that a preview is made of; rendered in every locale when the catalogue is loaded.
    #[serde(default)]
    pub(super) sample: Map<String, Value>,
}

/// One variable of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Declaration")]
pub struct Variable {
    /// What values it takes.
    #[serde(flatten)]
    pub kind: Kind,
    /// Whether a mail can be made without it. A missing one is `none` in the texts.
    pub required: bool,
    /// Whether its value must not be kept or shown after the mail is sent, as with a login code.
    pub sensitive: bool,
}

/// A variable as it is written, before it is known that its parts fit together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declaration {
    #[serde(rename = "type")]
    kind: String,
    of: Option<Box<Variable>>,
    fields: Option<BTreeMap<String, Variable>>,
    #[serde(default = "yes")]
    required: bool,
    #[serde(default)]
    sensitive: bool,
}

const fn yes() -> bool {
    true
}

impl TryFrom<Declaration> for Variable {
    type Error = String;

    fn try_from(declared: Declaration) -> Result<Self, String> {
        let kind = match (declared.kind.as_str(), declared.of, declared.fields) {
            ("string", None, None) => Kind::String,
            ("integer", None, None) => Kind::Integer,
            ("number", None, None) => Kind::Number,
            ("boolean", None, None) => Kind::Boolean,
            ("url", None, None) => Kind::Url,
            ("timestamp", None, None) => Kind::Timestamp,
            ("list", Some(of), None) => Kind::List { of },
            ("object", None, Some(fields)) => Kind::Object { fields },
            ("list", ..) => return Err("a list says by `of`, and by nothing else, what its items are".into()),
            ("object", ..) => {
                return Err("an object says by `fields`, and by nothing else, what is in it".into());
            }
            ("string" | "integer" | "number" | "boolean" | "url" | "timestamp", ..) => {
                return Err(format!("`of` and `fields` do not belong to the type `{}`", declared.kind));
            }
            (other, ..) => {
                return Err(format!(
                    "`{other}` is no type; use string, integer, number, boolean, url, timestamp, list or object"
                ));
            }
        };
        Ok(Self { kind, required: declared.required, sensitive: declared.sensitive })
    }
}

/// The values of a variable.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Kind {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// An `https` or `http` address, fit for a link.
    Url,
    /// A point in time, RFC 3339; the filter `when` writes it out.
    Timestamp,
    /// A list of values of one kind.
    List {
        /// What each of them is.
        of: Box<Variable>,
    },
    /// Named values.
    Object {
        /// What they are.
        fields: BTreeMap<String, Variable>,
    },
}

/// Keeps of `given` what is declared and completes it; what is wrong is put into `problems`, by name and never by value.
pub(super) fn fit(
    declared: &BTreeMap<String, Variable>,
    given: &Map<String, Value>,
    prefix: &str,
    problems: &mut Vec<String>,
) -> Map<String, Value> {
    let mut fitted = Map::new();
    for (name, variable) in declared {
        let path = format!("{prefix}{name}");
        let value = match given.get(name) {
            None | Some(Value::Null) if variable.required => {
                problems.push(format!("`{path}` is missing"));
                continue;
            }
            None | Some(Value::Null) => Value::Null,
            Some(value) => match fit_value(&variable.kind, value, &path, problems) {
                Some(value) => value,
                None => continue,
            },
        };
        fitted.insert(name.clone(), value);
    }
    fitted
}

fn fit_value(kind: &Kind, value: &Value, path: &str, problems: &mut Vec<String>) -> Option<Value> {
    let wanted = match (kind, value) {
        (Kind::String, Value::String(_))
        | (Kind::Number, Value::Number(_))
        | (Kind::Boolean, Value::Bool(_)) => {
            return Some(value.clone());
        }
        (Kind::Integer, Value::Number(number)) if number.is_i64() || number.is_u64() => {
            return Some(value.clone());
        }
        (Kind::Url, Value::String(text)) if is_link(text) => return Some(value.clone()),
        (Kind::Timestamp, Value::String(text)) if text.parse::<jiff::Timestamp>().is_ok() => {
            return Some(value.clone());
        }
        (Kind::List { of }, Value::Array(items)) => {
            let items = items.iter().enumerate();
            return items
                .map(|(at, item)| fit_value(&of.kind, item, &format!("{path}[{at}]"), problems))
                .collect::<Option<Vec<_>>>()
                .map(Value::Array);
        }
        (Kind::Object { fields }, Value::Object(given)) => {
            let before = problems.len();
            let fitted = fit(fields, given, &format!("{path}."), problems);
            return (problems.len() == before).then_some(Value::Object(fitted));
        }
        (Kind::String, _) => "a text",
        (Kind::Integer, _) => "a whole number",
        (Kind::Number, _) => "a number",
        (Kind::Boolean, _) => "true or false",
        (Kind::Url, _) => "an https or http address",
        (Kind::Timestamp, _) => "a time such as 2026-11-22T14:05:00Z",
        (Kind::List { .. }, _) => "a list",
        (Kind::Object { .. }, _) => "an object",
    };
    problems.push(format!("`{path}` is not {wanted}"));
    None
}

/// A link may not run a script in the reader's browser, and a mail cannot carry a relative one.
fn is_link(text: &str) -> bool {
    let plain = !text.chars().any(|c| c.is_control() || c.is_whitespace());
    plain && url::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
}
