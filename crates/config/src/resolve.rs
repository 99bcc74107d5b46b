use std::collections::{BTreeMap, BTreeSet};

use voiceai_runtime::Secret;

use crate::compose::{self, Parts};
use crate::layer::{Content, Environment, Layer, LayerError, LayerKind};
use crate::mask::{quoted, shown};
use crate::nearest;
use crate::report::{Report, Violation, Warning};
use crate::setting::{Binary, Declaration};
use crate::value::{Address, Value};
use crate::{catalogue, reader, rotation};

/// A value that one layer gives for a setting.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The layer.
    pub layer: LayerKind,
    /// Where the layer reads, for people.
    pub origin: String,
    /// The variable it stands under: the setting's name or one of its aliases.
    pub variable: String,
    /// The text, trimmed unless it is secret.
    pub value: Secret,
}

/// A setting with the value that won and every value that lost, highest layer first.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// The setting.
    pub declaration: &'static Declaration,
    /// The value that counts; `None` leaves the default.
    pub winner: Option<Candidate>,
    /// What the winner replaced.
    pub losers: Vec<Candidate>,
}

/// One layer as it was read.
struct Stratum {
    kind: LayerKind,
    origin: String,
    content: Content,
}

/// All settings of one binary after every layer was read.
#[derive(Debug)]
pub struct Resolved {
    binary: Binary,
    settings: BTreeMap<&'static str, Resolution>,
    patterns: BTreeMap<(&'static str, String), Resolution>,
    pub(crate) found: Report,
}

impl Resolved {
    /// Reads the environment of this process alone.
    #[must_use]
    pub fn from_environment(binary: Binary) -> Self {
        let origin = Environment.origin();
        Self::of(
            binary,
            vec![Stratum { kind: LayerKind::Bootstrap, origin, content: Environment::content() }],
        )
    }

    /// Takes the given pairs for the environment: what tests use.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(
        binary: Binary,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let values = pairs.into_iter().map(|(name, value)| (name.into(), Secret::new(value))).collect();
        let content = Content { values, ..Content::default() };
        Self::of(binary, vec![Stratum { kind: LayerKind::Bootstrap, origin: Environment.origin(), content }])
    }

    /// Reads every layer, in the order of [`LayerKind`] whatever the order given; two of one kind keep the given order.
    ///
    /// # Errors
    /// A layer that cannot be read ends it: a start on part of the layers would run on values that were replaced.
    pub async fn from_layers(binary: Binary, layers: &[&dyn Layer]) -> Result<Self, LayerError> {
        let mut strata = Vec::with_capacity(layers.len());
        for layer in layers {
            strata.push(Stratum { kind: layer.kind(), origin: layer.origin(), content: layer.read().await? });
        }
        Ok(Self::of(binary, strata))
    }

    fn of(binary: Binary, mut strata: Vec<Stratum>) -> Self {
        strata.sort_by_key(|stratum| stratum.kind);
        let mut found = Report::default();
        let mut settings = BTreeMap::new();
        let mut patterns = BTreeMap::new();
        for declaration in catalogue::declarations() {
            if declaration.is_pattern() {
                collect_pattern(declaration, &strata, &mut patterns, &mut found);
            } else {
                settings.insert(declaration.name, Gathered::from(declaration, &strata, &mut found));
            }
        }
        split_addresses(&mut settings, &mut found);
        let mut settings: BTreeMap<_, _> =
            settings.into_iter().map(|(name, gathered)| (name, gathered.settle(&mut found))).collect();
        compose_values(&mut settings, &mut found);
        let mut names = BTreeSet::new();
        for stratum in &mut strata {
            found.warnings.append(&mut stratum.content.warnings);
        }
        found.warnings.extend(replaced_bootstrap(&strata));
        found.warnings.extend(rotation::without_namespace(&settings));
        for stratum in &strata {
            names.extend(
                stratum.content.values.keys().chain(stratum.content.unreadable.keys()).map(String::as_str),
            );
        }
        found.warnings.extend(nearest::unknown(names));
        Self { binary, settings, patterns, found }
    }

    /// The binary these were read for.
    #[must_use]
    pub const fn binary(&self) -> Binary {
        self.binary
    }

    /// Oddities found while the layers were put together.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.found.warnings
    }

    /// The settings of this binary in the order of the catalogue, patterns included where something matches them.
    pub fn resolutions(&self) -> impl Iterator<Item = (String, &Resolution)> {
        catalogue::declarations().filter(|declaration| declaration.binaries.include(self.binary)).flat_map(
            |declaration| {
                let one =
                    self.settings.get(declaration.name).map(|found| (declaration.name.to_owned(), found));
                let many = self
                    .matches(declaration)
                    .map(|(part, found)| (declaration.name.replace(crate::setting::PLACE, part), found));
                one.into_iter().chain(many)
            },
        )
    }

    pub(crate) const fn settings(&self) -> &BTreeMap<&'static str, Resolution> {
        &self.settings
    }

    pub(crate) fn resolution(&self, declaration: &Declaration) -> Option<&Resolution> {
        self.settings.get(declaration.name)
    }

    pub(crate) fn matches<'r>(
        &'r self,
        declaration: &Declaration,
    ) -> impl Iterator<Item = (&'r str, &'r Resolution)> + use<'r> {
        let name = declaration.name;
        self.patterns
            .iter()
            .filter(move |((of, _), _)| *of == name)
            .map(|((_, part), found)| (part.as_str(), found))
    }

    /// The text that counts, the default included.
    pub(crate) fn effective(&self, name: &str) -> Option<&str> {
        effective(&self.settings, name)
    }

    /// The text that counts and is not secret, its default included: for remedies, start lines and other crates' messages.
    #[must_use]
    pub fn shown(&self, name: &str) -> Option<String> {
        let declaration = self.settings.get(name)?.declaration;
        self.effective(name).map(|raw| shown(declaration, raw))
    }

    /// Reads typed settings. What comes back is free of placeholders: any violation among the settings that `read` asked for
    /// gives the report instead.
    ///
    /// # Errors
    /// Every violation at once.
    pub fn read<S>(&self, read: impl FnOnce(&reader::Reader<'_>) -> S) -> Result<reader::Loaded<S>, Report> {
        reader::load(self, false, read)
    }

    /// As [`Resolved::read`], and also checks every other setting of this binary, whether `read` asked for it or not: what a
    /// service does before it runs, and what `config check` does.
    ///
    /// # Errors
    /// Every violation at once.
    pub fn read_whole<S>(
        &self,
        read: impl FnOnce(&reader::Reader<'_>) -> S,
    ) -> Result<reader::Loaded<S>, Report> {
        reader::load(self, true, read)
    }
}

/// What is edited on a host and silently replaced by the store above it: the classical way to change nothing for an hour.
const EDITED_IN_VAIN: [&str; 3] = ["BASTION_PUBLIC_KEY", "CONFIG_BUCKET", "NAMESPACE"];

fn replaced_bootstrap(strata: &[Stratum]) -> Vec<Warning> {
    let value = |kind: LayerKind, name: &str| {
        let strata = strata.iter().filter(|stratum| stratum.kind == kind);
        strata.filter_map(|stratum| stratum.content.values.get(name)).next_back()
    };
    let differing = EDITED_IN_VAIN.into_iter().filter(|name| {
        let (Some(bootstrap), Some(ssm)) = (value(LayerKind::Bootstrap, name), value(LayerKind::Ssm, name))
        else {
            return false;
        };
        !bootstrap.is_empty() && !ssm.is_empty() && bootstrap.expose() != ssm.expose()
    });
    differing
        .map(|name| Warning {
            name: name.to_owned(),
            message:
                "differs between the bootstrap environment and SSM; SSM's value counts, so change it there"
                    .to_owned(),
            nearest: None,
        })
        .collect()
}

pub(crate) fn effective<'s>(settings: &'s BTreeMap<&'static str, Resolution>, name: &str) -> Option<&'s str> {
    let found = settings.get(name)?;
    found.winner.as_ref().map(|winner| winner.value.expose()).or(found.declaration.default)
}

/// The candidates of one setting, lowest layer first.
struct Gathered {
    declaration: &'static Declaration,
    candidates: Vec<Candidate>,
}

impl Gathered {
    fn from(declaration: &'static Declaration, strata: &[Stratum], found: &mut Report) -> Self {
        let mut candidates = Vec::new();
        for stratum in strata {
            for variable in declaration.aliases.iter().rev().chain([&declaration.name]) {
                candidates.extend(candidate(declaration, stratum, variable, found));
            }
        }
        Self { declaration, candidates }
    }

    /// The highest value of each variable must be the same text, whatever its layer: which of two names wins is nothing that
    /// an operator could guess.
    fn settle(self, found: &mut Report) -> Resolution {
        let mut highest: BTreeMap<&str, &Candidate> = BTreeMap::new();
        for candidate in &self.candidates {
            highest.insert(&candidate.variable, candidate);
        }
        let mut names = highest.values();
        if let Some(first) = names.next() {
            for other in names {
                if other.value.expose() != first.value.expose() {
                    found.violations.push(Violation {
                        name: other.variable.clone(),
                        layer: Some(other.layer.to_string()),
                        given: Some(quoted(self.declaration, other.value.expose())),
                        expected: format!(
                            "the same value as {} ({}), which is another name of the same setting",
                            first.variable, first.layer
                        ),
                        remedy: format!(
                            "Unset one of them, best {}.",
                            alias_of(self.declaration, first, other)
                        ),
                    });
                }
            }
        }
        let mut losers = self.candidates;
        let winner = losers.pop();
        losers.reverse();
        Resolution { declaration: self.declaration, winner, losers }
    }
}

fn alias_of<'c>(declaration: &Declaration, first: &'c Candidate, other: &'c Candidate) -> &'c str {
    if first.variable == declaration.name { &other.variable } else { &first.variable }
}

fn candidate(
    declaration: &'static Declaration,
    stratum: &Stratum,
    variable: &str,
    found: &mut Report,
) -> Option<Candidate> {
    if let Some(reason) = stratum.content.unreadable.get(variable) {
        found.violations.push(Violation {
            name: variable.to_owned(),
            layer: Some(stratum.kind.to_string()),
            given: Some("unreadable".to_owned()),
            expected: declaration.expected(),
            remedy: format!("Correct it: {reason}."),
        });
        return None;
    }
    let value = stratum.content.values.get(variable)?;
    let trimmed = value.expose().trim();
    if trimmed.is_empty() {
        return None;
    }
    let value = if declaration.is_secret() { value.clone() } else { Secret::new(trimmed) };
    Some(Candidate {
        layer: stratum.kind,
        origin: stratum.origin.clone(),
        variable: variable.to_owned(),
        value,
    })
}

fn collect_pattern(
    declaration: &'static Declaration,
    strata: &[Stratum],
    patterns: &mut BTreeMap<(&'static str, String), Resolution>,
    found: &mut Report,
) {
    for stratum in strata {
        for variable in stratum.content.values.keys() {
            let Some(part) = declaration.matched(variable) else { continue };
            let Some(candidate) = candidate(declaration, stratum, variable, found) else { continue };
            let entry = patterns.entry((declaration.name, part.to_owned()));
            let resolution = entry.or_insert(Resolution { declaration, winner: None, losers: Vec::new() });
            resolution.losers.splice(0..0, resolution.winner.replace(candidate));
        }
    }
}

/// `MAIL_REDIS_MASTER_ADDR=host:6379` stands for two settings.
fn split_addresses(settings: &mut BTreeMap<&'static str, Gathered>, found: &mut Report) {
    let splitting =
        catalogue::declarations().filter_map(|declaration| Some((declaration, declaration.splits_into?)));
    for (declaration, (host, port)) in splitting {
        let candidates =
            settings.get(declaration.name).map(|gathered| gathered.candidates.clone()).unwrap_or_default();
        for candidate in candidates {
            match Address::parse(candidate.value.expose(), declaration) {
                Ok(address) => {
                    add(settings, host, &candidate, address.host);
                    add(settings, port, &candidate, address.port.to_string());
                }
                Err(expected) => found.violations.push(Violation {
                    name: candidate.variable.clone(),
                    layer: Some(candidate.layer.to_string()),
                    given: Some(quoted(declaration, candidate.value.expose())),
                    expected,
                    remedy: format!("Correct it, or set {host} and {port} instead."),
                }),
            }
        }
    }
}

fn add(settings: &mut BTreeMap<&'static str, Gathered>, name: &str, from: &Candidate, value: String) {
    if let Some(gathered) = settings.get_mut(name) {
        // Before the first of a higher or the same layer: a setting's own name stays the one that is shown.
        let at = gathered.candidates.iter().position(|have| have.layer >= from.layer);
        let at = at.unwrap_or(gathered.candidates.len());
        gathered.candidates.insert(at, Candidate { value: Secret::new(value), ..from.clone() });
    }
}

fn compose_values(settings: &mut BTreeMap<&'static str, Resolution>, found: &mut Report) {
    let composed =
        catalogue::declarations().filter_map(|declaration| Some((declaration, declaration.compose?)));
    for (declaration, rule) in composed {
        let given = |name: &str| settings.get(name)?.winner.as_ref().map(|winner| winner.value.expose());
        let value = |name: &str| effective(settings, name);
        let built = (rule.build)(&Parts { given: &given, value: &value });
        match built {
            Ok(compose::Composed { value: Some(value), warnings }) => {
                found.warnings.extend(warnings);
                let Some(resolution) = settings.get_mut(declaration.name) else { continue };
                let winner = Candidate {
                    layer: LayerKind::Composed,
                    origin: format!("composed as {}", rule.template),
                    variable: declaration.name.to_owned(),
                    value: Secret::new(value),
                };
                resolution.losers.splice(0..0, resolution.winner.replace(winner));
            }
            Ok(compose::Composed { value: None, warnings }) => found.warnings.extend(warnings),
            Err(violation) => found.violations.push(violation),
        }
    }
}
