//! The checks of `doctor` that both services share, and the frame in which each adds its own.
//!
//! A check never changes anything it looks at, and none needs another: a store that is away fails its own check and makes
//! those that need it `skipped`.

mod cloud;
mod database;
mod host;
mod leadership;
pub mod provider;
mod proxy;
mod redis;
mod ses;
mod smtp;
mod stores;
mod upkeep;

use std::time::Duration;

use voiceai_cli::doctor::{Diagnosis, Doctor, Finding, report};
use voiceai_cli::{ExitCode, Output};
use voiceai_config::{Binary, Reader, Resolved};
use voiceai_service::{Identity, Shared};

pub use host::{endpoint, executables, listening, program};
pub use stores::Stores;

/// How long one check may take; all run at the same time.
pub const BOUND: Duration = Duration::from_secs(10);

/// What lies outside this host and its stores.
#[derive(Debug)]
struct Outside {
    way: proxy::Way,
    cloud: cloud::Cloud,
    mail_server: Result<smtp::Server, smtp::Absent>,
    sender: Option<ses::Sender>,
}

impl Outside {
    fn read(reader: &Reader<'_>) -> Self {
        Self {
            way: proxy::Way::read(reader),
            cloud: cloud::Cloud::read(reader),
            mail_server: smtp::Server::read(reader),
            sender: ses::Sender::read(reader),
        }
    }
}

/// Runs `doctor` on every layer of settings: see [`doctor`]. A layer that cannot be read is the one finding.
pub async fn run<S>(
    identity: Identity,
    json: bool,
    read: impl FnOnce(&Reader<'_>) -> S,
    add: impl FnOnce(&mut Doctor, &Stores, &S),
) -> ExitCode {
    match voiceai_service::resolve(identity.binary).await {
        Ok(resolved) => doctor(identity, json, &resolved, read, add).await,
        Err(failure) => {
            let mut doctor = Doctor::new();
            let finding = Finding::failed(failure.message, failure.remedy);
            doctor.check("settings", BOUND, std::future::ready(finding));
            ended(&doctor.examine().await, json)
        }
    }
}

/// Runs `doctor`: the shared checks and those that `add` adds, printed as a table or, with `json`, as one document. Settings
/// that are wrong are the first finding; then nothing that needs them is looked at.
///
/// Exit code 7 when a check failed, else 0.
pub async fn doctor<S>(
    identity: Identity,
    json: bool,
    resolved: &Resolved,
    read: impl FnOnce(&Reader<'_>) -> S,
    add: impl FnOnce(&mut Doctor, &Stores, &S),
) -> ExitCode {
    ended(&examine(identity, resolved, read, add).await, json)
}

fn ended(found: &[Diagnosis], json: bool) -> ExitCode {
    match report(found, Output::new(json)) {
        Ok(()) => ExitCode::Done,
        Err(failure) => failure.report(json),
    }
}

/// The findings of [`doctor`], for callers that print them otherwise.
pub async fn examine<S>(
    identity: Identity,
    resolved: &Resolved,
    read: impl FnOnce(&Reader<'_>) -> S,
    add: impl FnOnce(&mut Doctor, &Stores, &S),
) -> Vec<Diagnosis> {
    // Another caller may have installed it; there is one for the whole process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut doctor = Doctor::new();
    match resolved.read_whole(|reader| (Shared::read(reader), Outside::read(reader), read(reader))) {
        Err(wrong) => {
            let names: Vec<_> = wrong.violations.iter().map(|violation| violation.name.as_str()).collect();
            let evidence = format!("wrong: {}; nothing else was looked at", names.join(", "));
            let finding = Finding::failed(evidence, "Run `config check`, which says what each should be.");
            doctor.check("settings", BOUND, std::future::ready(finding));
        }
        Ok(loaded) => {
            let (shared, outside, own) = loaded.settings;
            let finding = match loaded.warnings.as_slice() {
                [] => Finding::ok("valid"),
                warnings => {
                    let names: Vec<_> = warnings.iter().map(|warning| warning.name.as_str()).collect();
                    Finding::warning(
                        format!("valid, but look at {}", names.join(", ")),
                        "Run `config check`.",
                    )
                }
            };
            doctor.check("settings", BOUND, std::future::ready(finding));
            let stores = Stores::new(&shared);
            host::add(&mut doctor, resolved, &shared);
            proxy::add(&mut doctor, outside.way);
            cloud::add(&mut doctor, &outside.cloud);
            redis::add(&mut doctor, &stores);
            database::add(&mut doctor, &stores, identity.components);
            leadership::add(&mut doctor, &stores, &shared);
            if identity.binary == Binary::Tasker {
                smtp::add(&mut doctor, outside.mail_server);
                ses::add(&mut doctor, outside.sender);
                upkeep::add(&mut doctor, &stores);
            }
            add(&mut doctor, &stores, &own);
        }
    }
    doctor.examine().await
}
