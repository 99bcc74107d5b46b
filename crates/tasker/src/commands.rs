//! Every command: reads arguments, calls [`crate::operate`], writes down the answer. One file per noun.

mod audit;
mod backup;
mod cron;
mod doctor;
mod doctor_certificates;
mod doctor_queues;
mod doctor_recording;
mod doctor_webhooks;
mod enqueue;
mod export;
mod health;
mod jobs;
mod mail;
mod orchestration;
mod queue;
mod release;
mod replay;
mod status;
mod webhook;

use std::sync::Arc;

use voiceai_cli::{
    Actor, ExitCode, Failure, Healthcheck, Mutation, Output, OutputArgs, Surroundings, actor, completions,
    config, healthcheck, invalid_settings,
};
use voiceai_config::{Instance, Resolved};
use voiceai_queue::Client;
use voiceai_queue::history::{History, HistorySettings};
use voiceai_service::{Shared, failures};

use crate::IDENTITY;
use crate::cli::{Cli, Command};
use crate::operate::{Act, Desk, queue_failure};
use crate::settings::TaskerSettings;

/// A command with settings read and telemetry up.
type Service = voiceai_service::Command<TaskerSettings>;

/// Runs one command line to its exit code.
pub async fn dispatch(cli: Cli) -> ExitCode {
    let OutputArgs { json } = cli.output;
    let output = Output::new(json);
    match cli.command {
        Command::Run => {
            Box::pin(voiceai_service::run(IDENTITY, TaskerSettings::read, crate::run::start)).await
        }
        Command::Healthcheck(arguments) => ended(check_health(arguments, output), json),
        Command::Completions(shell) => ended(completions::<Cli>(shell), json),
        Command::Backup(command) => Box::pin(backup::dispatch(command, json)).await,
        Command::Doctor => Box::pin(doctor::run(json)).await,
        Command::Config(command) => {
            let resolved = match voiceai_service::resolve(IDENTITY.binary).await {
                Ok(resolved) => resolved,
                Err(failure) => return failure.report(json),
            };
            let read =
                |reader: &voiceai_config::Reader<'_>| (Shared::read(reader), TaskerSettings::read(reader));
            ended(config(command, &resolved, output, read), json)
        }
        command => {
            let body = |service: Service| with_settings(command, service, output);
            voiceai_service::command(IDENTITY, json, TaskerSettings::read, body).await
        }
    }
}

fn ended(result: Result<(), Failure>, json: bool) -> ExitCode {
    result.map_or_else(|failure| failure.report(json), |()| ExitCode::Done)
}

fn check_health(arguments: Healthcheck, output: Output) -> Result<(), Failure> {
    let resolved = Resolved::from_environment(IDENTITY.binary);
    let instance = resolved.read(Instance::read).map_err(|report| invalid_settings(&report))?.settings;
    healthcheck(arguments, &instance, output)
}

async fn with_settings(command: Command, service: Service, output: Output) -> Result<ExitCode, Failure> {
    let done = match command {
        Command::Health => return health::run(&service, output).await,
        Command::Jobs(command) => Box::pin(jobs::run(command, &service, output)).await,
        Command::Queue(command) => Box::pin(queue::run(command, &service, output)).await,
        Command::Mail(command) => Box::pin(mail::run(command, &service, output)).await,
        Command::Webhook(command) => Box::pin(webhook::run(command, &service, output)).await,
        Command::Export(command) => Box::pin(export::run(command, &service, output)).await,
        Command::Status => status::run(&service, output).await,
        Command::Cron(command) => Box::pin(cron::run(command, &service, output)).await,
        Command::Orchestration(command) => Box::pin(orchestration::run(command, &service, output)).await,
        Command::Audit(command) => audit::run(command, &service, output).await,
        Command::Release(command) => release::run(command, &service, output).await,
        Command::Migrate => migrate(&service, output).await,
        // Answered before settings are read.
        Command::Run
        | Command::Backup(_)
        | Command::Doctor
        | Command::Healthcheck(_)
        | Command::Config(_)
        | Command::Completions(_) => Ok(()),
    };
    done.map(|()| ExitCode::Done)
}

async fn migrate(service: &Service, output: Output) -> Result<(), Failure> {
    let applied = service.migrate().await?;
    output.one(&serde_json::json!({ "applied": applied }), |_| match applied.as_slice() {
        [] => "the schema is up to date\n".to_owned(),
        applied => format!("applied {}\n", applied.join(", ")),
    })
}

/// Both stores, with a history that what is done here is written to.
async fn desk(service: &Service) -> Result<Desk, Failure> {
    let voiceai_service::Backends { redis, pool } = service.backends().await?;
    // Settings of one environment and a store of another: better refused than acted on.
    let environment = &service.shared.general.environment;
    let checked = voiceai_leader::check_installation(&redis, &pool, environment).await;
    checked.map_err(|error| failures::installation(&error))?;
    // Without a writer behind it: operators' acts are written at once, never batched.
    let (history, _) = History::new(pool.clone(), HistorySettings::default());
    let client =
        Client::with_history(redis, Arc::new(history)).await.map_err(|error| queue_failure(&error))?;
    Ok(Desk { client, pool })
}

/// The queues alone, for reading.
async fn client(service: &Service) -> Result<Client, Failure> {
    Client::connect(service.redis().await?).await.map_err(|error| queue_failure(&error))
}

/// Ctrl-C leaves a replay that can be gone on with.
fn stopping() -> Result<tokio_util::sync::CancellationToken, Failure> {
    let shutdown = voiceai_runtime::Shutdown::on_signals()
        .map_err(|error| Failure::failed("signals", error.to_string(), "Report this."))?;
    Ok(shutdown.stopping())
}

/// Who does it and why.
fn act(mutation: &Mutation) -> Result<Act, Failure> {
    let actor: Actor = actor(mutation.as_name.as_deref(), &Surroundings::read())?;
    Ok(Act { actor: actor.to_string(), reason: mutation.reason.clone() })
}

/// Beside the data: what a person should know, in either mode.
fn warn(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "warning: {text}");
}
