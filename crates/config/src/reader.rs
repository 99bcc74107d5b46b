use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::layer::LayerKind;
use crate::mask::quoted;
use crate::report::{Report, Violation, Warning};
use crate::resolve::{Candidate, Resolved};
use crate::setting::{Declaration, Required, Setting};
use crate::value::Value;
use crate::{resolve::Resolution, rules};

/// Settings as types, with the oddities that do not stand against a start.
#[derive(Debug)]
pub struct Loaded<S> {
    /// What the reading function made.
    pub settings: S,
    /// To be logged once at start.
    pub warnings: Vec<Warning>,
}

/// Hands out typed values and collects what is wrong with them. Reading goes on after a violation with a placeholder, so that
/// all are found at once; [`Resolved::read`] never lets a placeholder out.
#[derive(Debug)]
pub struct Reader<'r> {
    resolved: &'r Resolved,
    found: Mutex<Report>,
}

impl Reader<'_> {
    /// The value, else the declared default. A setting with neither is a violation.
    pub fn get<T: Value>(&self, setting: &'static Setting<T>) -> T {
        self.required(setting)
    }

    /// The value, else the declared default. A setting with neither is a violation, whether it is declared as required or not:
    /// the caller knows when it is needed.
    pub fn required<T: Value>(&self, setting: &'static Setting<T>) -> T {
        self.optional(setting).unwrap_or_else(|| {
            let declaration = &setting.declaration;
            if self.resolved.resolution(declaration).is_some_and(|found| found.winner.is_none()) {
                self.add(missing(declaration, "a value, because nothing works without it"));
            }
            T::placeholder()
        })
    }

    /// The value, else the declared default, else nothing. A wrong value is a violation and gives nothing.
    pub fn optional<T: Value>(&self, setting: &'static Setting<T>) -> Option<T> {
        let declaration = &setting.declaration;
        let winner = self.resolved.resolution(declaration).and_then(|found| found.winner.as_ref());
        match winner {
            Some(winner) => self.parse(declaration, winner),
            None => declaration.default.and_then(|text| T::parse(text, declaration).ok()),
        }
    }

    /// True when a layer gives the setting a value, right or wrong: a default does not count.
    pub fn is_given<T>(&self, setting: &'static Setting<T>) -> bool {
        self.resolved.resolution(&setting.declaration).is_some_and(|found| found.winner.is_some())
    }

    /// The layer whose value counts; `None` where only a default does, or nothing.
    #[must_use]
    pub fn layer<T>(&self, setting: &'static Setting<T>) -> Option<LayerKind> {
        let found = self.resolved.resolution(&setting.declaration)?;
        found.winner.as_ref().map(|winner| winner.layer)
    }

    /// A pattern's value for one name: `QUEUE_<NAME>_RATE` for `email-queue` is `QUEUE_EMAIL_QUEUE_RATE`, or the shorter
    /// `QUEUE_EMAIL_RATE`. Both set differently is a violation.
    pub fn named<T: Value>(&self, setting: &'static Setting<T>, name: &str) -> Option<T> {
        let declaration = &setting.declaration;
        let long = variable_part(name);
        let find = |part: &str| {
            let found = self.resolved.matches(declaration).find(|(have, _)| *have == part);
            found.and_then(|(_, resolution)| resolution.winner.as_ref())
        };
        let short = long.strip_suffix("_QUEUE").and_then(find);
        let long = find(&long);
        if let (Some(long), Some(short)) = (long, short)
            && long.value.expose() != short.value.expose()
        {
            self.add(Violation {
                expected: format!(
                    "the same value as {}, which is another name of the same setting",
                    long.variable
                ),
                remedy: "Unset one of them.".to_owned(),
                ..wrong(declaration, short, String::new())
            });
        }
        self.parse(declaration, long.or(short)?)
    }

    /// Every name for which a pattern has a value, as it stands in the variable (`EMAIL_QUEUE`).
    pub fn each<T: Value>(&self, setting: &'static Setting<T>) -> BTreeMap<String, T> {
        let declaration = &setting.declaration;
        let matches = self.resolved.matches(declaration);
        matches
            .filter_map(|(part, found)| {
                Some((part.to_owned(), self.parse(declaration, found.winner.as_ref()?)?))
            })
            .collect()
    }

    /// A rule between settings is broken: `setting` is the one to change. `expected` completes "expected …"; `remedy` is an
    /// order.
    pub fn violation<T>(
        &self,
        setting: &'static Setting<T>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let declaration = &setting.declaration;
        let expected = expected.into();
        let winner = self.resolved.resolution(declaration).and_then(|found| found.winner.as_ref());
        let mut violation = match (winner, declaration.default) {
            (Some(winner), _) => wrong(declaration, winner, expected),
            (None, Some(default)) => Violation {
                given: Some(quoted(declaration, default)),
                layer: Some("default".to_owned()),
                ..missing(declaration, &expected)
            },
            (None, None) => missing(declaration, &expected),
        };
        violation.remedy = remedy.into();
        self.add(violation);
    }

    /// Something odd about `setting` that does not stand against a start.
    pub fn warning<T>(&self, setting: &'static Setting<T>, message: impl Into<String>) {
        let warning =
            Warning { name: setting.declaration.name.to_owned(), message: message.into(), nearest: None };
        self.report().warnings.push(warning);
    }

    /// The binary whose settings are read.
    #[must_use]
    pub const fn binary(&self) -> crate::Binary {
        self.resolved.binary()
    }

    fn parse<T: Value>(&self, declaration: &'static Declaration, candidate: &Candidate) -> Option<T> {
        let parsed = check(declaration, candidate.value.expose())
            .and_then(|()| T::parse(candidate.value.expose(), declaration));
        parsed.map_err(|expected| self.add(wrong(declaration, candidate, expected))).ok()
    }

    fn add(&self, violation: Violation) {
        let mut report = self.report();
        if !report.violations.contains(&violation) {
            report.violations.push(violation);
        }
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name as it stands inside a variable: upper case, everything else an underscore.
pub(crate) fn variable_part(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn check(declaration: &Declaration, raw: &str) -> Result<(), String> {
    match declaration.check {
        Some(rule) if !(rule.holds)(raw) => Err(declaration.expected()),
        _ => Ok(()),
    }
}

pub(crate) fn wrong(declaration: &Declaration, candidate: &Candidate, expected: String) -> Violation {
    let remedy = if candidate.layer == crate::LayerKind::Composed {
        "Correct the settings it is composed from.".to_owned()
    } else {
        format!("Correct it in {}.", candidate.origin)
    };
    Violation {
        name: candidate.variable.clone(),
        layer: Some(candidate.layer.to_string()),
        given: Some(quoted(declaration, candidate.value.expose())),
        expected,
        remedy,
    }
}

fn missing(declaration: &Declaration, expected: &str) -> Violation {
    let remedy = declaration.template().map_or_else(
        || format!("Set {}: {}", declaration.name, declaration.doc.trim()),
        |template| format!("Set {}, or the parts of {template}.", declaration.name),
    );
    let name = declaration.name.to_owned();
    Violation { name, layer: None, given: None, expected: expected.to_owned(), remedy }
}

pub(crate) fn load<S>(
    resolved: &Resolved,
    whole: bool,
    read: impl FnOnce(&Reader<'_>) -> S,
) -> Result<Loaded<S>, Report> {
    let reader = Reader { resolved, found: Mutex::new(resolved.found.clone()) };
    let settings = read(&reader);
    if whole {
        check_all(&reader);
    }
    for violation in rules::broken(resolved) {
        reader.add(violation);
    }
    let report = reader.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if report.is_valid() { Ok(Loaded { settings, warnings: report.warnings }) } else { Err(report) }
}

/// Every setting of the binary, also those that nothing asked for.
fn check_all(reader: &Reader<'_>) {
    for (_, Resolution { declaration, winner, .. }) in reader.resolved.resolutions() {
        if let Some(winner) = winner {
            let verified = check(declaration, winner.value.expose())
                .and_then(|()| (declaration.verify)(winner.value.expose(), declaration));
            if let Err(expected) = verified {
                reader.add(wrong(declaration, winner, expected));
            }
            continue;
        }
        let needed = needed_because(declaration, &|name| {
            let found = reader.resolved.settings().get(name);
            (found.is_some_and(|found| found.winner.is_some()), reader.resolved.effective(name))
        });
        // What reads the setting may have said the same in words of its own.
        let said = reader.report().violations.iter().any(|violation| violation.name == declaration.name);
        if let Some(because) = needed.filter(|_| !said) {
            reader.add(missing(declaration, &format!("a value, because {because}")));
        }
    }
}

/// Why an unset setting must have a value. `look` gives whether a setting is given, and its effective value.
fn needed_because<'v>(
    declaration: &Declaration,
    look: &dyn Fn(&str) -> (bool, Option<&'v str>),
) -> Option<String> {
    match declaration.required {
        Required::Always => Some("nothing works without it".to_owned()),
        Required::When(other, value) => (look(other).1 == Some(value)).then(|| format!("{other} is {value}")),
        Required::With(other) => look(other).0.then(|| format!("{other} is set")),
        Required::No => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Setting;
    use crate::value::kinds::text;

    #[test]
    fn what_is_required_depends_on_the_other_setting() {
        static WHEN: Setting<String> = text().named("SMTP_HOST", "").required_when("TRANSPORT", "smtp");
        static WITH: Setting<String> = text().named("SECRET_KEY", "").required_with("ACCESS_KEY");
        let because = |setting: &Setting<String>, given, value| {
            needed_because(&setting.declaration, &|_| (given, value))
        };
        assert_eq!(because(&WHEN, true, Some("smtp")).as_deref(), Some("TRANSPORT is smtp"));
        assert_eq!(because(&WHEN, true, Some("ses")), None);
        assert_eq!(because(&WHEN, false, None), None);
        assert_eq!(because(&WITH, true, Some("x")).as_deref(), Some("ACCESS_KEY is set"));
        assert_eq!(because(&WITH, false, Some("a default")), None);
    }
}
