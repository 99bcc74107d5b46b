use std::fmt::Write as _;

use crate::catalogue;
use crate::setting::{Declaration, Required};

const HEAD: &str = include_str!("document_head.md");

/// `docs/configuration.md`, whole: made from the declarations, so that it cannot say anything else than the code does.
#[must_use]
pub fn document() -> String {
    let mut text = HEAD.to_owned();
    for section in catalogue::SECTIONS {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n## {}\n\n{}\n", section.title, section.intro);
        text.push_str(
            "\n| Variable | Type | Default | Source | Service | Meaning |\n|---|---|---|---|---|---|\n",
        );
        for declaration in section.declarations {
            text.push_str(&row(declaration));
        }
    }
    text
}

fn row(declaration: &Declaration) -> String {
    let mut name = format!("`{}`", declaration.name);
    if !declaration.aliases.is_empty() {
        let aliases: Vec<String> = declaration.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        let _ = write!(name, " (also {})", aliases.join(", "));
    }
    let services = declaration.binaries.names().iter().map(|name| name.trim_start_matches("voiceai-"));
    let cells = [
        name,
        kind(declaration),
        default(declaration),
        declaration.source.name().replace('_', " "),
        services.collect::<Vec<_>>().join(", "),
        meaning(declaration),
    ];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
}

fn kind(declaration: &Declaration) -> String {
    let label = declaration.kind.label();
    match declaration.bounds {
        Some((1, 65_535)) | None => label,
        Some((least, i64::MAX)) => format!("{label}, at least {least}"),
        Some((least, most)) => match declaration.kind {
            crate::Kind::Duration | crate::Kind::Seconds => {
                format!("{label}, {} to {}", crate::value::humane(least), crate::value::humane(most))
            }
            _ => format!("{label}, {least} to {most}"),
        },
    }
}

fn default(declaration: &Declaration) -> String {
    match (declaration.default, declaration.computed_default, declaration.required) {
        (Some(default), ..) => format!("`{default}`"),
        (None, Some(words), _) => words.to_owned(),
        (None, None, Required::Always) => "required".to_owned(),
        (None, None, Required::When(other, value)) => format!("required when `{other}={value}`"),
        (None, None, Required::With(other)) => format!("required with `{other}`"),
        (None, None, Required::No) => "unset".to_owned(),
    }
}

fn meaning(declaration: &Declaration) -> String {
    let mut text = declaration.doc.trim().to_owned();
    // Writing to a String cannot fail.
    let _ = match (declaration.check, declaration.template()) {
        (_, Some(template)) => write!(text, " Composed as `{template}` where unset."),
        (Some(check), None) => write!(text, " Expected: {}.", check.expected),
        (None, None) => Ok(()),
    };
    if let Some(external) = declaration.external {
        let _ = write!(
            text,
            " Also read from the secret `{}` names, under `{}`.",
            external.arn_from, external.key
        );
    }
    if declaration.rotates {
        text.push_str(" Picked up while the service runs.");
    }
    text
}
