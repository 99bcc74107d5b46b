use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// What selects the items of a replay, in one written form: the same selection always compares equal, in whatever order and
/// with whatever blanks it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filter(BTreeMap<String, String>);

impl Filter {
    /// Selects everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition; `None` and blank text add nothing.
    #[must_use]
    pub fn with(mut self, name: &str, value: Option<impl Into<String>>) -> Self {
        let value = value.map(|value| value.into().trim().to_owned()).filter(|value| !value.is_empty());
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    /// Adds a condition that names several values, as a set.
    #[must_use]
    pub fn with_any(self, name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let set: BTreeSet<String> = values.into_iter().map(|value| value.into().trim().to_owned()).collect();
        let text = set.into_iter().filter(|value| !value.is_empty()).collect::<Vec<_>>().join(",");
        self.with(name, Some(text))
    }

    /// True when it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of one condition.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("everything");
        }
        for (at, (name, value)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { " " };
            write!(f, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_selection_is_the_same_filter() {
        let one = Filter::new()
            .with("queue", Some("mail "))
            .with("kind", Some("a"))
            .with_any("id", ["2", "1", "2"]);
        let other =
            Filter::new().with_any("id", [" 1", "2"]).with("kind", Some("a")).with("queue", Some("mail"));
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "id=1,2 kind=a queue=mail");
        assert_eq!(serde_json::to_string(&one).unwrap(), r#"{"id":"1,2","kind":"a","queue":"mail"}"#);
        assert_ne!(one, other.with("tenant", Some("t")));
    }

    #[test]
    fn nothing_given_selects_everything() {
        let filter =
            Filter::new().with("kind", None::<String>).with("queue", Some("  ")).with_any("id", [""]);
        assert!(filter.is_empty());
        assert_eq!(filter.to_string(), "everything");
    }
}
