//! What a running service asks of settings that were read again: which values rotate, which changed, which secrets stand
//! outside the service's own prefix.

use std::collections::BTreeMap;

use voiceai_runtime::Secret;

use crate::catalogue;
use crate::catalogue::platform::NAMESPACE;
use crate::report::Warning;
use crate::resolve::{Resolution, Resolved, effective};

/// A secret outside the service's own prefix, and what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalSecret {
    /// The secret's name or ARN.
    pub name: String,
    /// The setting that names it.
    pub named_by: &'static str,
    /// Variable and the key it stands under.
    pub keys: Vec<(&'static str, &'static str)>,
}

/// One setting that a running service picks up.
#[derive(Debug, Clone)]
pub struct Rotating {
    /// The setting.
    pub name: &'static str,
    /// Its value; `None` when no layer gives one.
    pub value: Option<Secret>,
    /// Why the value cannot be used, in words that hold nothing of it.
    pub wrong: Option<String>,
}

impl Resolved {
    /// The secrets that settings name by `arn_from`, each once, with the variables it may hold.
    #[must_use]
    pub fn external_secrets(&self) -> Vec<ExternalSecret> {
        let mut found: BTreeMap<&'static str, ExternalSecret> = BTreeMap::new();
        let wanted = catalogue::declarations().filter(|one| one.binaries.include(self.binary()));
        for declaration in wanted {
            let Some(external) = declaration.external else { continue };
            let Some(name) = effective(self.settings(), external.arn_from) else { continue };
            let secret = found.entry(external.arn_from).or_insert_with(|| ExternalSecret {
                name: name.to_owned(),
                named_by: external.arn_from,
                keys: Vec::new(),
            });
            secret.keys.push((declaration.name, external.key));
        }
        found.into_values().collect()
    }

    /// Every setting of this binary that rotates, as it stands now.
    #[must_use]
    pub fn rotating(&self) -> Vec<Rotating> {
        self.mine(true).map(|(name, found)| self.rotating_one(name, found)).collect()
    }

    /// The settings of this binary that do not rotate and whose values differ from those of `before`: what the next start
    /// would take.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<&'static str> {
        let text = |found: &Resolution| found.winner.as_ref().map(|winner| winner.value.clone());
        self.mine(false)
            .filter(|(name, found)| {
                let earlier = before.settings().get(name).and_then(text);
                let now = text(found);
                earlier.as_ref().map(Secret::expose) != now.as_ref().map(Secret::expose)
            })
            .map(|(name, _)| name)
            .collect()
    }

    fn mine(&self, rotates: bool) -> impl Iterator<Item = (&'static str, &Resolution)> {
        let binary = self.binary();
        self.settings().iter().map(|(name, found)| (*name, found)).filter(move |(_, found)| {
            found.declaration.rotates == rotates && found.declaration.binaries.include(binary)
        })
    }

    fn rotating_one(&self, name: &'static str, found: &Resolution) -> Rotating {
        let declaration = found.declaration;
        let value = found.winner.as_ref().map(|winner| winner.value.clone());
        let mut names = std::iter::once(&declaration.name).chain(declaration.aliases);
        let conflict =
            self.found.violations.iter().find(|violation| names.any(|have| *have == violation.name));
        let unfit = || {
            let raw = value.as_ref()?.expose();
            let fits = declaration.check.is_none_or(|check| (check.holds)(raw));
            let parsed =
                if fits { (declaration.verify)(raw, declaration) } else { Err(declaration.expected()) };
            parsed.err().map(|expected| format!("expected {expected}"))
        };
        let wrong = conflict.map(|violation| format!("expected {}", violation.expected)).or_else(unfit);
        Rotating { name, value, wrong }
    }
}

/// A secret that is named and never read would be missed for an hour.
pub(crate) fn without_namespace(settings: &BTreeMap<&'static str, Resolution>) -> Vec<Warning> {
    if effective(settings, NAMESPACE.declaration.name).is_some() {
        return Vec::new();
    }
    let mut names: Vec<_> =
        catalogue::declarations().filter_map(|one| Some(one.external?.arn_from)).collect();
    names.dedup();
    names
        .into_iter()
        .filter(|name| effective(settings, name).is_some())
        .map(|name| Warning {
            name: name.to_owned(),
            message: "has no effect, because NAMESPACE is not set and no secret is read without it"
                .to_owned(),
            nearest: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Binary;

    fn scaler(pairs: &[(&str, &str)]) -> Resolved {
        Resolved::from_pairs(Binary::Scaler, pairs.iter().copied())
    }

    #[test]
    fn a_secret_outside_is_asked_for_once_with_all_its_keys() {
        let named = scaler(&[("DATABASE_SECRET_ARN", "rds!db-1"), ("NAMESPACE", "voiceai/staging")]);
        let wanted = named.external_secrets();
        assert_eq!(wanted.len(), 1);
        assert_eq!((wanted[0].name.as_str(), wanted[0].named_by), ("rds!db-1", "DATABASE_SECRET_ARN"));
        assert_eq!(wanted[0].keys, [("DATABASE_USERNAME", "username"), ("DATABASE_PASSWORD", "password")]);
        assert!(named.warnings().is_empty(), "{:?}", named.warnings());
        assert!(scaler(&[]).external_secrets().is_empty());
        let unread = scaler(&[("DATABASE_SECRET_ARN", "rds!db-1")]);
        assert_eq!(unread.warnings()[0].name, "DATABASE_SECRET_ARN");
    }

    #[test]
    fn what_rotates_is_told_apart_from_what_needs_a_start() {
        let before = scaler(&[("HETZNER_API_TOKEN", "old-canary"), ("WORKER_CONCURRENCY", "1")]);
        let after = scaler(&[
            ("HETZNER_API_TOKEN", "new-canary"),
            ("LOG_LEVEL", "debug"),
            ("WORKER_CONCURRENCY", "2"),
        ]);
        assert_eq!(after.changed_since(&before), ["LOG_LEVEL"], "a tasker's setting is none of a scaler's");
        let token = |resolved: &Resolved| {
            let all = resolved.rotating();
            all.into_iter().find(|one| one.name == "HETZNER_API_TOKEN").expect("it rotates")
        };
        assert_eq!(token(&after).value.expect("given").expose(), "new-canary");
        assert!(token(&scaler(&[])).value.is_none());
        assert!(!format!("{:?}", after.rotating()).contains("canary"));
        let tasker = Resolved::from_pairs(Binary::Tasker, [("HETZNER_API_TOKEN", "x")]);
        assert!(tasker.rotating().iter().all(|one| one.name != "HETZNER_API_TOKEN"));
    }
}
