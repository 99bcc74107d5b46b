use std::fmt::Write as _;

use crate::catalogue;
use crate::setting::{Declaration, Required, Scope, Source};

/// The service's name on the platform: the last part of `/<NAMESPACE>/<service>/`.
const SERVICE: &str = "ops";

/// The settings of both services in the shape of the platform's `vars.yaml`.
#[must_use]
pub fn manifest() -> String {
    let mut text = format!("service: {SERVICE}\nvariables:\n");
    for declaration in catalogue::declarations() {
        variable(&mut text, declaration);
    }
    text
}

/// JSON strings are YAML strings, whatever they hold.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn variable(text: &mut String, declaration: &Declaration) {
    let mut line = |key: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {key}: {value}");
    };
    line("name", &quoted(declaration.name));
    match declaration.required {
        // What is composed may be given as its parts.
        Required::Always if declaration.template().is_some() => line("required", "false"),
        Required::No => line("required", "false"),
        Required::Always => line("required", "true"),
        Required::When(other, value) => line("required_when", &quoted(&format!("{other}={value}"))),
        // The manifest's language has no word for it; the service checks it at start.
        Required::With(_) => line("required", "false"),
    }
    if let Some(default) = declaration.default {
        line("default", &quoted(default));
    }
    if declaration.is_secret() {
        line("sensitive", "true");
    }
    if declaration.source == Source::Bootstrap {
        line("source", "local");
    }
    if declaration.scope == Scope::Init {
        line("scope", "init");
    }
    line("containers", &format!("[{}]", declaration.binaries.names().join(", ")));
    if let Some(template) = declaration.template() {
        line("compose", &format!("{{ template: {} }}", quoted(template)));
    }
    line("description", &quoted(declaration.doc.trim()));
    // The first line of an item carries the dash.
    if let Some(at) = text.rfind("    name: ") {
        text.replace_range(at..at + 4, "  - ");
    }
}
