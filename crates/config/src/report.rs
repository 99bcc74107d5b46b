use std::fmt;

use serde::Serialize;

/// One setting that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The variable, as the operator wrote it.
    pub name: String,
    /// The layer it came from; absent when nothing gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// What was given, masked when the setting is secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given: Option<String>,
    /// What would be right, completing "expected …".
    pub expected: String,
    /// What to do, as an order.
    pub remedy: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.given, &self.layer) {
            (Some(given), Some(layer)) => write!(f, "{} is {given} ({layer})", self.name)?,
            (Some(given), None) => write!(f, "{} is {given}", self.name)?,
            _ => write!(f, "{} is not set", self.name)?,
        }
        write!(f, ": expected {}. {}", self.expected, self.remedy)
    }
}

/// Something an operator should look at, and no reason not to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The variable.
    pub name: String,
    /// What is odd about it and what to do.
    pub message: String,
    /// The setting that was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

/// Everything found at once, so that one start is enough to learn all that must be corrected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Reasons not to start.
    pub violations: Vec<Violation>,
    /// Oddities.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// True when nothing stands against a start; warnings do not.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.violations.as_slice() {
            [] => f.write_str("the settings are valid")?,
            [one] => write!(f, "{one}")?,
            many => {
                write!(f, "{} settings are wrong:", many.len())?;
                for violation in many {
                    write!(f, "\n  {violation}")?;
                }
            }
        }
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
