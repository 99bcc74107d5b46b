//! The conventions in one small command line: what `main.rs` of a service does, with two nouns. The integration tests run it
//! as a process.

use std::process;

use clap::{Parser, Subcommand};
use serde::Serialize;
use voiceai_cli::{
    Column, Completions, ConfigCommand, ExitCode, Failure, Healthcheck, Mutation, Output, OutputArgs,
    Question, Surroundings, actor, completions, config, confirm, duration_arg, healthcheck, invalid_settings,
    parse,
};
use voiceai_config::{Binary, General, Instance, Resolved};

#[derive(Parser)]
#[command(name = "tool", version, about = "Shows the conventions")]
struct Tool {
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List so many numbers
    Numbers {
        #[arg(long, default_value_t = 3)]
        limit: u32,
    },
    /// Discard a number
    Discard {
        number: u32,
        #[arg(long, value_parser = duration_arg, default_value = "1h")]
        older_than: std::time::Duration,
        #[command(flatten)]
        mutation: Mutation,
    },
    #[command(subcommand)]
    Config(ConfigCommand),
    Healthcheck(Healthcheck),
    Completions(Completions),
}

#[derive(Serialize)]
struct Number {
    number: u32,
    text: String,
}

fn main() -> process::ExitCode {
    let tool: Tool = match parse() {
        Ok(tool) => tool,
        Err(exit) => return exit.into(),
    };
    let json = tool.output.json;
    match run(tool.command, Output::new(json)) {
        Ok(()) => ExitCode::Done,
        Err(failure) => failure.report(json),
    }
    .into()
}

fn run(command: Command, output: Output) -> Result<(), Failure> {
    let resolved = Resolved::from_environment(Binary::Tasker);
    match command {
        Command::Numbers { limit } => {
            let rows: Vec<_> =
                (0..limit).map(|number| Number { number, text: format!("number {number}") }).collect();
            let columns = [
                Column::new("NUMBER", |row: &Number| row.number.to_string()),
                Column::new("TEXT", |row: &Number| row.text.clone()),
            ];
            output.list("numbers", &rows, Some("c2"), &columns)
        }
        Command::Discard { number, mutation, .. } => {
            let actor = actor(mutation.as_name.as_deref(), &Surroundings::read())?;
            if number > 9 {
                return Err(Failure::not_found(
                    "number_not_found",
                    format!("there is no {number}"),
                    "Run `numbers`.",
                ));
            }
            if !mutation.dry_run {
                confirm(
                    &mutation,
                    &Question { verb: "Discard", object: &format!("number {number}"), count: None },
                )?;
            }
            output.text(&format!("discarded by {actor}\n"))
        }
        Command::Config(command) => config(command, &resolved, output, General::read),
        Command::Healthcheck(arguments) => {
            let instance =
                resolved.read(Instance::read).map_err(|report| invalid_settings(&report))?.settings;
            healthcheck(arguments, &instance, output)
        }
        Command::Completions(arguments) => completions::<Tool>(arguments),
    }
}
