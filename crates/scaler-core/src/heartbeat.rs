//! What an instance says about itself, and when that may be believed.
//!
//! A reading that is missing, stale, from the future, negative or not a number is *unknown*, never zero: a fleet whose
//! metrics are gone must not look like a fleet without calls.

use std::borrow::Cow;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// How far an instance's clock may be ahead of ours before its reading counts as from the future.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);

/// Largest heartbeat that is parsed, in bytes.
pub const HEARTBEAT_BYTES_MAX: usize = 16 * 1024;

/// One well-formed heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beat {
    /// `voice` or `api`, as written; `None` when absent.
    pub service: Option<String>,
    /// The server group the instance says it belongs to.
    pub group: Option<String>,
    /// Calls or connections running now.
    pub active: u64,
    /// The most the instance takes at once; `None` when it does not say.
    pub capacity: Option<u64>,
    /// When the instance wrote this, by its own clock.
    pub at: Timestamp,
    /// The instance's software version, when it says one.
    pub version: Option<String>,
}

/// What is known of an instance's load.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// A fresh, well-formed heartbeat.
    Known(Beat),
    /// Nothing that may be believed, and why.
    Unknown(Unknown),
}

impl Reading {
    /// The beat, when one is known.
    #[must_use]
    pub const fn known(&self) -> Option<&Beat> {
        match self {
            Self::Known(beat) => Some(beat),
            Self::Unknown(_) => None,
        }
    }
}

/// Why a reading is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// No heartbeat is stored under the instance's name.
    Missing,
    /// The store could not be read; nothing is said about the instance.
    Unreadable,
    /// Older than the staleness bound.
    Stale {
        /// Its age in milliseconds.
        age_ms: i64,
    },
    /// Written later than now, beyond [`CLOCK_SKEW`].
    Future {
        /// How far ahead, in milliseconds.
        ahead_ms: i64,
    },
    /// Not an object of the agreed shape, or a number that cannot be: the field and what is wrong with it.
    Malformed(String),
    /// Well-formed, but it names another group than the one the instance was made for.
    OtherGroup(String),
}

/// Reads one heartbeat. `raw` is what the store holds, `None` when it holds nothing.
#[must_use]
pub fn read(raw: Option<&[u8]>, now: Timestamp, stale_after: SignedDuration) -> Reading {
    let Some(raw) = raw else {
        return Reading::Unknown(Unknown::Missing);
    };
    match parse(raw) {
        Err(why) => Reading::Unknown(Unknown::Malformed(why)),
        Ok(beat) => judge(&beat, now, stale_after),
    }
}

/// Judges a well-formed heartbeat by its age.
#[must_use]
pub fn judge(beat: &Beat, now: Timestamp, stale_after: SignedDuration) -> Reading {
    let age = now.duration_since(beat.at);
    if age < -CLOCK_SKEW {
        Reading::Unknown(Unknown::Future { ahead_ms: clamp_ms(-age) })
    } else if age > stale_after {
        Reading::Unknown(Unknown::Stale { age_ms: clamp_ms(age) })
    } else {
        Reading::Known(beat.clone())
    }
}

fn clamp_ms(duration: SignedDuration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Parses a heartbeat's JSON without judging its age. The error names the field.
///
/// # Errors
/// The field that is missing or wrong, with what was found there.
pub fn parse(raw: &[u8]) -> Result<Beat, String> {
    if raw.len() > HEARTBEAT_BYTES_MAX {
        return Err(format!("{} bytes; at most {HEARTBEAT_BYTES_MAX} are read", raw.len()));
    }
    let fields: Fields = serde_json::from_slice(raw).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => "not a JSON object".to_owned(),
        _ => format!("not JSON: {error}"),
    })?;
    let text = |value: Option<Value>| match value {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let active = count(fields.active.as_ref(), "active")?.ok_or("active: missing")?;
    let capacity = count(fields.capacity.as_ref(), "capacity")?;
    if capacity == Some(0) {
        return Err("capacity: 0".to_owned());
    }
    let at_ms = count(fields.at_ms.as_ref(), "atMs")?.ok_or("atMs: missing")?;
    let at = i64::try_from(at_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .ok_or_else(|| format!("atMs: {at_ms} is no time"))?;
    Ok(Beat {
        service: text(fields.service),
        group: text(fields.group),
        active,
        capacity,
        at,
        version: text(fields.version),
    })
}

/// The fields that count, of whatever type: a fleet's heartbeats are read by the ten thousand.
#[derive(Default)]
struct Fields {
    service: Option<Value>,
    group: Option<Value>,
    active: Option<Value>,
    capacity: Option<Value>,
    at_ms: Option<Value>,
    version: Option<Value>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfObject;
        impl<'de> Visitor<'de> for OfObject {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    let place = match &*name {
                        "service" => &mut fields.service,
                        "group" => &mut fields.group,
                        "active" => &mut fields.active,
                        "capacity" => &mut fields.capacity,
                        "atMs" => &mut fields.at_ms,
                        "version" => &mut fields.version,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *place = Some(map.next_value()?);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_any(OfObject)
    }
}

/// A whole number that is not negative; `null` and absent are `None`.
fn count(value: Option<&Value>, name: &str) -> Result<Option<u64>, String> {
    let shown = |value: &Value| {
        let mut text = value.to_string();
        if let Some((cut, _)) = text.char_indices().nth(40) {
            text.truncate(cut);
        }
        text
    };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => number
            .as_u64()
            .or_else(|| whole(number.as_f64()?))
            .map(Some)
            .ok_or_else(|| format!("{name}: {number} is no count")),
        Some(other) => Err(format!("{name}: {} is no number", shown(other))),
    }
}

/// `37.0` is a count as well: some writers know only floating point.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: whole, not negative, below 2^53
fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..9.007_199_254_740_992e15).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;
    const STALE: SignedDuration = SignedDuration::from_secs(60);

    fn at(raw: &str) -> Reading {
        let now = Timestamp::from_millisecond(NOW_MS).expect("a time");
        read(Some(raw.as_bytes()), now, STALE)
    }

    fn beat(active: &str, at_ms: i64) -> Reading {
        at(&format!(
            r#"{{"service":"voice","group":"eu","active":{active},"capacity":100,"atMs":{at_ms},"version":"1.4.2"}}"#
        ))
    }

    #[test]
    fn a_whole_heartbeat_is_known() {
        let reading = beat("37", NOW_MS);
        let beat = reading.known().expect("known");
        assert_eq!((beat.active, beat.capacity), (37, Some(100)));
        assert_eq!(beat.group.as_deref(), Some("eu"));
        assert_eq!(beat.version.as_deref(), Some("1.4.2"));
    }

    #[test]
    fn both_edges_of_age_and_skew() {
        assert!(beat("1", NOW_MS - 60_000).known().is_some());
        assert_eq!(beat("1", NOW_MS - 60_001), Reading::Unknown(Unknown::Stale { age_ms: 60_001 }));
        assert!(beat("1", NOW_MS + 5_000).known().is_some());
        assert_eq!(beat("1", NOW_MS + 5_001), Reading::Unknown(Unknown::Future { ahead_ms: 5_001 }));
    }

    #[test]
    fn what_is_not_a_count_is_unknown_and_never_zero() {
        for active in ["-1", "\"37\"", "1.5", "null", "true", "[]", "{}", "1e300", "-0.5"] {
            assert!(matches!(beat(active, NOW_MS), Reading::Unknown(Unknown::Malformed(_))), "{active}");
        }
        for raw in ["", "null", "[]", "NaN", "{", "{}", "\u{0}", r#"{"active":1}"#] {
            assert!(matches!(at(raw), Reading::Unknown(Unknown::Malformed(_))), "{raw:?}");
        }
        assert_eq!(beat("37.0", NOW_MS).known().map(|beat| beat.active), Some(37));
        let now = Timestamp::from_millisecond(NOW_MS).expect("a time");
        assert_eq!(read(None, now, STALE), Reading::Unknown(Unknown::Missing));
    }

    #[test]
    fn a_capacity_that_cannot_be_makes_it_unknown_and_a_missing_one_does_not() {
        for capacity in ["0", "-5", "\"x\"", "1.5"] {
            let raw = format!(r#"{{"active":1,"capacity":{capacity},"atMs":{NOW_MS}}}"#);
            assert!(matches!(at(&raw), Reading::Unknown(Unknown::Malformed(_))), "{raw}");
        }
        let raw = format!(r#"{{"active":1,"atMs":{NOW_MS}}}"#);
        assert_eq!(at(&raw).known().map(|beat| beat.capacity), Some(None));
    }

    #[test]
    fn times_beyond_the_calendar_are_malformed() {
        for at_ms in ["99999999999999999", "18446744073709551615", "-1", "1e400"] {
            let raw = format!(r#"{{"active":1,"atMs":{at_ms}}}"#);
            assert!(matches!(at(&raw), Reading::Unknown(Unknown::Malformed(_))), "{raw}");
        }
        assert!(parse(&vec![b' '; HEARTBEAT_BYTES_MAX + 1]).is_err());
    }
}
