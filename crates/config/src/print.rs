use serde::Serialize;

use crate::layer::LayerKind;
use crate::mask::shown;
use crate::resolve::{Candidate, Resolved};
use crate::setting::Declaration;

/// One line of `config print`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Printed {
    /// The setting.
    pub name: String,
    /// Its value, masked when it is secret; absent when it is unset and has no default.
    pub value: Option<String>,
    /// A default that is computed, in words; only where nothing gives a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computed: Option<String>,
    /// True when the value is masked.
    pub secret: bool,
    /// The layer whose value counts; absent when there is no value.
    pub layer: Option<&'static str>,
    /// Where that layer reads.
    pub origin: Option<String>,
    /// The variable, where it is an alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Every value that lost, highest layer first; a default that lost is not listed.
    pub overridden: Vec<Overridden>,
}

impl Printed {
    /// Name, and value with its layer, for the line a service writes at start; nothing for a setting without a value.
    #[must_use]
    pub fn start_line(&self) -> Option<(String, String)> {
        let value = self.value.as_ref()?;
        Some((self.name.clone(), format!("{value} ({})", self.layer?)))
    }
}

/// A value that lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overridden {
    /// Its layer.
    pub layer: &'static str,
    /// Where that layer reads.
    pub origin: String,
    /// The variable it stands under.
    pub variable: String,
    /// The value, masked when it is secret.
    pub value: String,
    /// True when it is the same text as the one that won: tells secrets apart without showing them.
    pub same: bool,
}

impl Resolved {
    /// Every setting of this binary with its value, the layer that won and every layer that lost, in the catalogue's order.
    #[must_use]
    pub fn print(&self) -> Vec<Printed> {
        self.resolutions()
            .map(|(name, found)| match &found.winner {
                Some(winner) => printed(name, found.declaration, winner, &found.losers),
                None => unset(name, found.declaration),
            })
            .collect()
    }
}

fn printed(name: String, declaration: &Declaration, winner: &Candidate, losers: &[Candidate]) -> Printed {
    let overridden = losers.iter().map(|loser| Overridden {
        layer: loser.layer.name(),
        origin: loser.origin.clone(),
        variable: loser.variable.clone(),
        value: shown(declaration, loser.value.expose()),
        same: loser.value.expose() == winner.value.expose(),
    });
    Printed {
        value: Some(shown(declaration, winner.value.expose())),
        computed: None,
        secret: declaration.is_secret(),
        layer: Some(winner.layer.name()),
        origin: Some(winner.origin.clone()),
        alias: (winner.variable != name).then(|| winner.variable.clone()),
        overridden: overridden.collect(),
        name,
    }
}

fn unset(name: String, declaration: &Declaration) -> Printed {
    let has_default = declaration.default.is_some() || declaration.computed_default.is_some();
    Printed {
        name,
        value: declaration.default.map(str::to_owned),
        computed: declaration.computed_default.map(|words| words.replace('`', "")),
        secret: declaration.is_secret(),
        layer: has_default.then(|| LayerKind::Default.name()),
        origin: has_default.then(|| "the declaration".to_owned()),
        alias: None,
        overridden: Vec::new(),
    }
}
