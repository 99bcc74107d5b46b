use std::fmt::Write as _;

use serde::Serialize;

use crate::catalogue;
use crate::setting::{Declaration, Required, Scope, Source};

/// The service's name on the platform: the last part of `/<NAMESPACE>/<service>/`.
pub const SERVICE: &str = "ops";

/// The settings of both services in the shape of the platform's `vars.yaml`.
#[derive(Debug, Clone, Serialize)]
pub struct Manifest {
    /// The service's name on the platform.
    pub service: &'static str,
    /// Every setting.
    pub variables: Vec<Variable>,
}

/// One entry of [`Manifest`].
#[derive(Debug, Clone, Serialize)]
pub struct Variable {
    /// The variable.
    pub name: &'static str,
    /// True when the service does not start without it. False for what may be composed from parts.
    pub required: bool,
    /// `OTHER=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_when: Option<String>,
    /// Used when no layer gives a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<&'static str>,
    /// True for a secret.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sensitive: bool,
    /// `local` for the bootstrap environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'static str>,
    /// `init` for what only the host uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'static str>,
    /// The containers that get it.
    pub containers: &'static [&'static str],
    /// The secret outside the service's own prefix that may hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<OutsideSecret>,
    /// How it is built from other settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose: Option<Template>,
    /// For people.
    pub description: &'static str,
}

/// Where a variable stands outside the service's own prefix.
#[derive(Debug, Clone, Serialize)]
pub struct OutsideSecret {
    /// The variable that holds the secret's name or ARN.
    pub arn_from: &'static str,
    /// Always `json`.
    #[serde(rename = "type")]
    pub form: &'static str,
    /// The key of the JSON object.
    pub key: &'static str,
}

/// How a variable is built from others.
#[derive(Debug, Clone, Serialize)]
pub struct Template {
    /// With the other variables in braces.
    pub template: &'static str,
}

/// The manifest of everything declared.
#[must_use]
pub fn manifest() -> Manifest {
    Manifest { service: SERVICE, variables: catalogue::declarations().map(variable).collect() }
}

fn variable(declaration: &'static Declaration) -> Variable {
    Variable {
        name: declaration.name,
        // What is composed may be given as its parts. The manifest has no word for "needed beside another": the service
        // itself checks that.
        required: matches!(declaration.required, Required::Always) && declaration.template().is_none(),
        required_when: match declaration.required {
            Required::When(other, value) => Some(format!("{other}={value}")),
            Required::No | Required::Always | Required::With(_) => None,
        },
        default: declaration.default,
        sensitive: declaration.is_secret(),
        source: (declaration.source == Source::Bootstrap).then_some("local"),
        scope: (declaration.scope == Scope::Init).then_some("init"),
        containers: declaration.binaries.names(),
        secret: declaration.external.map(|external| OutsideSecret {
            arn_from: external.arn_from,
            form: "json",
            key: external.key,
        }),
        compose: declaration.template().map(|template| Template { template }),
        description: declaration.doc.trim(),
    }
}

impl Manifest {
    /// The manifest as YAML.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut text = format!("service: {}\nvariables:\n", self.service);
        for variable in &self.variables {
            let entry = serde_json::to_value(variable).unwrap_or_default();
            // JSON values are YAML values, whatever they hold. Writing to a String cannot fail.
            let _ = writeln!(text, "  - name: {}", entry["name"]);
            for (key, value) in entry.as_object().into_iter().flatten().filter(|(key, _)| *key != "name") {
                let _ = writeln!(text, "    {key}: {value}");
            }
        }
        text
    }
}
