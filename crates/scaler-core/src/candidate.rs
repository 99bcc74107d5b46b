//! Which machine type in which location is tried next.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One machine type in one location, as the group's configuration writes it. Further keys are the provider's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Candidate(pub Map<String, Value>);

impl Candidate {
    /// The machine type; empty when the provider knows only one.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.text("type")
    }

    /// The location or zone; empty when the provider knows only one.
    #[must_use]
    pub fn location(&self) -> &str {
        self.text("location")
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// A pair that was out of stock, and until when it is not asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfStock {
    /// The provider's name.
    pub provider: String,
    /// The machine type.
    pub machine: String,
    /// The location.
    pub location: String,
    /// End of the rest.
    pub until: Timestamp,
}

/// The first candidate at or after `from` that is not resting. `None`: every one left is out of stock.
#[must_use]
pub fn choose(
    provider: &str,
    candidates: &[Candidate],
    from: usize,
    resting: &[OutOfStock],
    now: Timestamp,
) -> Option<usize> {
    (from..candidates.len()).find(|&index| {
        let candidate = &candidates[index];
        !resting.iter().any(|pair| {
            pair.until > now
                && pair.provider == provider
                && pair.machine == candidate.machine()
                && pair.location == candidate.location()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use serde_json::json;

    fn pair(machine: &str, location: &str) -> Candidate {
        serde_json::from_value(json!({"type": machine, "location": location})).expect("a candidate")
    }

    #[test]
    fn order_is_kept_and_resting_pairs_are_passed_over() {
        let now = Timestamp::UNIX_EPOCH;
        let list = [pair("a", "x"), pair("a", "y"), pair("b", "x")];
        let rest = |machine: &str, location: &str, seconds: i64| OutOfStock {
            provider: "p".into(),
            machine: machine.into(),
            location: location.into(),
            until: now + SignedDuration::from_secs(seconds),
        };
        assert_eq!(choose("p", &list, 0, &[], now), Some(0));
        assert_eq!(choose("p", &list, 1, &[], now), Some(1));
        assert_eq!(choose("p", &list, 3, &[], now), None);
        assert_eq!(choose("p", &list, 0, &[rest("a", "x", 1)], now), Some(1));
        assert_eq!(choose("p", &list, 0, &[rest("a", "x", 0)], now), Some(0), "its rest is over");
        assert_eq!(choose("q", &list, 0, &[rest("a", "x", 1)], now), Some(0), "another provider");
        let all = [rest("a", "x", 1), rest("a", "y", 1), rest("b", "x", 1)];
        assert_eq!(choose("p", &list, 0, &all, now), None);
    }
}
