use clap::Subcommand;
use serde::Serialize;
use voiceai_config::{Printed, Reader, Report, Resolved, Violation, Warning, manifest};

use crate::failure::Failure;
use crate::output::{Column, Output};

/// Look at the configuration
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting with its value (secrets masked), the layer it came from and each layer that lost
    Print,
    /// Report every violation and warning; exit 4 when the service would not start
    Check,
    /// Print the declarations of both services in the shape of the platform's vars.yaml
    Manifest,
}

/// The failure of a start on settings that are missing or wrong: refused (4), with every violation.
#[must_use]
pub fn invalid_settings(report: &Report) -> Failure {
    Failure::refused("invalid_configuration", report.to_string(), "Correct every setting named above.")
}

/// Runs `config print|check|manifest`. `read` is what the service itself reads at start, so that `check` finds exactly what a
/// start would.
///
/// # Errors
/// Refused (4) when `check` finds a violation; failed (1) when stdout cannot be written.
pub fn config<S>(
    command: ConfigCommand,
    resolved: &Resolved,
    output: Output,
    read: impl FnOnce(&Reader<'_>) -> S,
) -> Result<(), Failure> {
    match command {
        ConfigCommand::Print => print(resolved, output),
        ConfigCommand::Check => check(resolved, output, read),
        ConfigCommand::Manifest => output.one(&manifest(), voiceai_config::Manifest::yaml),
    }
}

fn print(resolved: &Resolved, output: Output) -> Result<(), Failure> {
    let overridden = |row: &Printed| {
        let lost = row.overridden.iter().map(|lost| {
            let alias = if lost.variable == row.name { String::new() } else { format!(" {}", lost.variable) };
            format!("{}{alias}={}{}", lost.layer, lost.value, if lost.same { " (the same)" } else { "" })
        });
        lost.collect::<Vec<_>>().join(", ")
    };
    let columns = [
        Column::new("NAME", |row: &Printed| row.name.clone()),
        Column::new("VALUE", |row: &Printed| {
            let computed = || row.computed.as_ref().map(|words| format!("({words})"));
            row.value.clone().or_else(computed).unwrap_or_default()
        }),
        Column::new("LAYER", |row: &Printed| {
            let alias = row.alias.as_ref().map(|alias| format!(" ({alias})")).unwrap_or_default();
            row.layer.map(|layer| format!("{layer}{alias}")).unwrap_or_default()
        }),
        Column::new("OVERRIDDEN", overridden),
    ];
    output.list("settings", &resolved.print(), None, &columns)?;
    for warning in resolved.warnings() {
        // Beside the data; a closed stderr loses nothing that was asked for.
        let _ =
            std::io::Write::write_fmt(&mut std::io::stderr().lock(), format_args!("warning: {warning}\n"));
    }
    Ok(())
}

#[derive(Serialize)]
struct Checked<'r> {
    valid: bool,
    violations: &'r [Violation],
    warnings: &'r [Warning],
}

fn check<S>(resolved: &Resolved, output: Output, read: impl FnOnce(&Reader<'_>) -> S) -> Result<(), Failure> {
    let report = match resolved.read_whole(read) {
        Ok(loaded) => Report { violations: Vec::new(), warnings: loaded.warnings },
        Err(report) => report,
    };
    let checked =
        Checked { valid: report.is_valid(), violations: &report.violations, warnings: &report.warnings };
    output.one(&checked, |_| format!("{report}\n"))?;
    match report.violations.len() {
        0 => Ok(()),
        count => {
            let what = if count == 1 {
                "1 setting is wrong".to_owned()
            } else {
                format!("{count} settings are wrong")
            };
            Err(Failure::refused("invalid_configuration", what, "Correct every setting named above."))
        }
    }
}
