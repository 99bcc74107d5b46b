use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Why one candidate may not be replayed now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// A fixed word, by which a plan counts: `bad_payload`, `no_handler`, `target_gone`, …
    pub code: &'static str,
    /// What is wrong with this very candidate.
    pub message: String,
}

impl Refusal {
    /// `code` is a fixed word, `message` tells of this candidate.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// One thing that the filter selected, after its checks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Where it lies: a queue's name.
    pub place: String,
    /// Its id there.
    pub id: String,
    /// What is needed to make it anew, for work that was never enqueued; empty for what is there.
    #[serde(skip)]
    pub content: Option<Value>,
    /// What a person wants to see of it.
    #[serde(flatten)]
    pub shown: Value,
    /// Why it may not be replayed; absent when every check passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// What a replay would do. Making one changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// How many the filter selects in all.
    pub matched: u64,
    /// How many of those were checked: the first ones, oldest first, up to a bound.
    pub checked: u64,
    /// How many of the checked ones pass.
    pub passed: u64,
    /// Why the others do not: refusal code to count.
    pub refused: BTreeMap<&'static str, u64>,
    /// How many would go back with this limit.
    pub would_replay: u64,
    /// The candidates that were looked at, those that would go back first.
    pub candidates: Vec<Candidate>,
}

impl Plan {
    /// Sums up `candidates`, of which at most `limit` would go back; `matched` counts also those that were not looked at.
    #[must_use]
    pub fn of(candidates: Vec<Candidate>, matched: u64, limit: usize) -> Self {
        let (mut passing, others): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|c| c.refused.is_none());
        let mut refused = BTreeMap::new();
        for refusal in others.iter().filter_map(|candidate| candidate.refused.as_ref()) {
            *refused.entry(refusal.code).or_insert(0) += 1;
        }
        let passed = passing.len() as u64;
        let checked = passed + others.len() as u64;
        let would_replay = passing.len().min(limit) as u64;
        passing.extend(others);
        Self { matched: matched.max(checked), checked, passed, refused, would_replay, candidates: passing }
    }

    /// The candidates that go back, in order.
    pub fn chosen(&self) -> impl Iterator<Item = &Candidate> {
        let count = usize::try_from(self.would_replay).unwrap_or(usize::MAX);
        self.candidates.iter().filter(|candidate| candidate.refused.is_none()).take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: &str, refused: Option<&'static str>) -> Candidate {
        Candidate {
            place: "q".into(),
            id: id.into(),
            content: None,
            shown: serde_json::json!({"kind": "k"}),
            refused: refused.map(|code| Refusal::new(code, "why")),
        }
    }

    #[test]
    fn a_plan_counts_what_passes_and_why_the_others_do_not() {
        let all = vec![
            candidate("1", Some("no_handler")),
            candidate("2", None),
            candidate("3", None),
            candidate("4", Some("no_handler")),
            candidate("5", Some("target_gone")),
            candidate("6", None),
        ];
        let plan = Plan::of(all, 40, 2);
        assert_eq!((plan.matched, plan.checked, plan.passed, plan.would_replay), (40, 6, 3, 2));
        assert_eq!(plan.refused, BTreeMap::from([("no_handler", 2), ("target_gone", 1)]));
        assert_eq!(plan.chosen().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["2", "3"]);
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["candidates"][3]["refused"]["code"], "no_handler");
        assert_eq!(json["candidates"][0]["kind"], "k");
    }
}
