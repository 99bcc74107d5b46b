//! The command line of voiceai-scaler.

mod doctor;
mod operate;
mod read;
mod run;
mod simulate;

use std::process::ExitCode as ProcessExit;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use voiceai_cli::{
    Completions, ConfigCommand, ExitCode, Failure, Healthcheck, Mutation, Output, OutputArgs, duration_arg,
    time_arg,
};
use voiceai_config::{Binary, Instance, Reader, Resolved};
use voiceai_postgres::{COMMON, Component, SCALER};
use voiceai_service::{Command, Identity, Shared, command};

use crate::script;
use crate::settings::ScalerSettings;

const COMPONENTS: &[Component] = &[COMMON, SCALER];

pub(crate) const IDENTITY: Identity =
    Identity { binary: Binary::Scaler, version: env!("CARGO_PKG_VERSION"), components: COMPONENTS };

/// Keeps the fleets of Voice and API servers at the right size.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 5 a backend is unreachable, 6 partly done, 7 unhealthy.
#[derive(Debug, Parser)]
#[command(name = "voiceai-scaler", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the control loop: what the container runs
    Run,
    /// Evaluate once and do nothing: inputs, decision, reason and the script calls it would make
    Plan(PlanArgs),
    /// Show the leader, groups, servers, open operations and the timers that hold a group
    Status,
    /// Show decisions and operation steps, newest first
    History(HistoryArgs),
    /// Take one server out of service: out of routing, wait for its calls, delete it
    Drain(OneServer),
    /// Call a drain off
    Undrain(OneServer),
    /// Keep one server from being removed
    Protect(ProtectArgs),
    /// Stop decisions about a group, or about all
    Pause(PauseArgs),
    /// End a pause; with --all also the hold after a restored database
    Resume(ResumeArgs),
    /// Look for what is wrong: settings, stores, leader, groups, scripts, servers
    Doctor,
    /// Rehearse one or more policies on a recorded or made-up load; needs no settings and no backend
    Simulate(simulate::SimulateArgs),
    /// Show who changed what, newest first
    #[command(subcommand)]
    Audit(AuditVerb),
    #[command(subcommand)]
    Config(ConfigCommand),
    Healthcheck(Healthcheck),
    /// Bring the database's schema to this version
    Migrate,
    Completions(Completions),
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// Only this server group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

#[derive(Debug, Args)]
struct HistoryArgs {
    /// Only this server group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Leave out decisions that did nothing
    #[arg(long)]
    actions_only: bool,
    /// At most this many lines
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on after a list that ended with this cursor
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    /// List the entries of the audit trail
    List(AuditArgs),
}

#[derive(Debug, Args)]
struct AuditArgs {
    /// Only entries since this RFC 3339 time
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    since: Option<jiff::Timestamp>,
    /// At most this many entries
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on after a list that ended with this cursor
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<i64>,
}

#[derive(Debug, Args)]
struct OneServer {
    /// The server's name
    name: String,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Debug, Args)]
struct ProtectArgs {
    /// The server's name
    name: String,
    /// For how long, such as 30m or 12h; 0s ends the protection
    #[arg(long = "for", value_name = "DURATION", value_parser = duration_arg)]
    duration: Duration,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["group", "all"])]
struct WhichGroups {
    /// The server group's name
    group: Option<String>,
    /// Every group
    #[arg(long)]
    all: bool,
}

impl WhichGroups {
    fn target(&self) -> &str {
        self.group.as_deref().unwrap_or("*")
    }
}

#[derive(Debug, Args)]
struct PauseArgs {
    #[command(flatten)]
    which: WhichGroups,
    /// For how long, such as 30m or 12h
    #[arg(long = "for", value_name = "DURATION", value_parser = duration_arg)]
    duration: Duration,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Debug, Args)]
struct ResumeArgs {
    #[command(flatten)]
    which: WhichGroups,
    #[command(flatten)]
    mutation: Mutation,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ProcessExit {
    // Before anything else: a script's guard reads no settings and starts no threads.
    if let Some(code) = script::run_if_asked() {
        return ProcessExit::from(u8::try_from(code).unwrap_or(1));
    }
    let code = match voiceai_cli::parse::<Cli>() {
        Err(code) => code,
        Ok(cli) => match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(dispatch(cli)),
            Err(error) => Failure::failed(
                "runtime_failed",
                format!("start the runtime: {error}"),
                "Look at the limits of processes and threads.",
            )
            .report(false),
        },
    };
    ProcessExit::from(code.code())
}

async fn dispatch(cli: Cli) -> ExitCode {
    let json = cli.output.json;
    let output = Output::new(json);
    match cli.command {
        Verb::Run => run::run().await,
        Verb::Plan(arguments) => with(json, |command| read::plan(command, arguments, output)).await,
        Verb::Status => with(json, |command| read::status(command, output)).await,
        Verb::History(arguments) => with(json, |command| read::history(command, arguments, output)).await,
        Verb::Drain(one) => with(json, |command| operate::drain(command, one, output)).await,
        Verb::Undrain(one) => with(json, |command| operate::undrain(command, one, output)).await,
        Verb::Protect(arguments) => with(json, |command| operate::protect(command, arguments, output)).await,
        Verb::Pause(arguments) => with(json, |command| operate::pause(command, arguments, output)).await,
        Verb::Resume(arguments) => with(json, |command| operate::resume(command, arguments, output)).await,
        Verb::Migrate => with(json, |command| read::migrate(command, output)).await,
        Verb::Simulate(arguments) => local(json, simulate::run(&arguments, output)),
        Verb::Audit(AuditVerb::List(arguments)) => {
            with(json, |command| read::audit(command, arguments, output)).await
        }
        Verb::Doctor => doctor::run(json).await,
        Verb::Config(verb) => local(json, config(verb, output).await),
        Verb::Healthcheck(arguments) => local(json, healthcheck(arguments, output)),
        Verb::Completions(arguments) => local(json, voiceai_cli::completions::<Cli>(arguments)),
    }
}

async fn with<F, Fut>(json: bool, body: F) -> ExitCode
where
    F: FnOnce(Command<ScalerSettings>) -> Fut,
    Fut: Future<Output = Result<ExitCode, Failure>>,
{
    command(IDENTITY, json, ScalerSettings::read, body).await
}

fn local(json: bool, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::Done,
        Err(failure) => failure.report(json),
    }
}

async fn config(verb: ConfigCommand, output: Output) -> Result<(), Failure> {
    let resolved = voiceai_service::resolve(Binary::Scaler).await?;
    let read = |reader: &Reader<'_>| (Shared::read(reader), ScalerSettings::read(reader));
    voiceai_cli::config(verb, &resolved, output, read)
}

fn healthcheck(arguments: Healthcheck, output: Output) -> Result<(), Failure> {
    let resolved = Resolved::from_environment(Binary::Scaler);
    let instance = resolved.read(Instance::read).map_err(|report| voiceai_cli::invalid_settings(&report))?;
    voiceai_cli::healthcheck(arguments, &instance.settings, output)
}
