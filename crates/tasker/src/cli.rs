//! The command line: what may be asked, and how it is written. Nothing is done here.

mod backup;
mod common;
mod cron;
mod export;
mod jobs;
mod mail;
mod orchestration;
mod queue;
mod webhook;

use clap::{Args, Parser, Subcommand};
use voiceai_cli::{Completions, ConfigCommand, Healthcheck, Mutation, OutputArgs};

pub use backup::{Backup, Identity, Series};
pub use common::{Page, PerSecond, When};
pub use cron::{Cron, CronSet, Missed, Overlap};
pub use export::{CreateExport, Export};
pub use jobs::{Discard, Enqueue, Jobs, ListJobs, Replay, Select, State};
pub use mail::{ListMail, Mail, MailStatus, Part, PauseMail, Preview, ReplayMail, Subject, Suppressions};
pub use orchestration::{ListOrchestration, Orchestration, OrchestrationStatus};
pub use queue::{Clean, OrNone, Purge, Queue, QueueSet};
pub use webhook::{
    DeliveryState, Endpoints, EndpointsCommand, ListDeliveries, OneEndpoint, ReplayWebhooks,
    SelectDeliveries, TestEndpoint, Webhook,
};

const AFTER_HELP: &str = "\
Data goes to stdout; logs, questions and errors go to stderr. Settings come from the environment: `config print` shows them.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused (invalid configuration, precondition), 5 a backend is \
unreachable, 6 partly done, 7 unhealthy.";

/// The platform's background work: workers, schedules, backups.
#[derive(Debug, Parser)]
#[command(name = "voiceai-tasker", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// How data is written.
    #[command(flatten)]
    pub output: OutputArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run workers, scheduler, outbox relay and history writer until SIGTERM; what the container runs
    Run,
    /// Jobs: enqueue, look, cancel, discard, replay
    #[command(subcommand)]
    Jobs(Jobs),
    /// Queues: look, pause, drain, purge, change limits
    #[command(subcommand)]
    Queue(Queue),
    /// One screen: leader, workers, queues, schedules, newest proved backup
    Status,
    /// How the watched services are; exit code 7 when one is not healthy
    Health,
    /// Schedules of recurring jobs
    #[command(subcommand)]
    Cron(Cron),
    /// Mail: look, send again, replay, preview, pause
    #[command(subcommand)]
    Mail(Mail),
    /// Webhooks: endpoints, deliveries, probes, replay
    #[command(subcommand)]
    Webhook(Webhook),
    /// Orchestration: its jobs, and why a schedule does not fire
    #[command(subcommand)]
    Orchestration(Orchestration),
    /// Who changed what, and why
    #[command(subcommand)]
    Audit(Audit),
    /// Let a leader act again that holds still because its database was restored from a backup
    Release(Release),
    /// Database backups: take, list, prove, restore
    #[command(subcommand)]
    Backup(Backup),
    /// Exports of the platform's tables: order, list, show with a link
    #[command(subcommand)]
    Export(Export),
    /// Look at settings, stores, queues, schedules and backups; says what is wrong and what to do
    Doctor,
    /// Say whether the process on this host is live (exit 0) or stuck (exit 7); needs no backend
    Healthcheck(Healthcheck),
    /// Settings: show them with their origin, check them, write the manifest
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Bring the database schema up to this version and end
    Migrate,
    /// Write a shell's completion script
    Completions(Completions),
}

/// `audit …`
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Newest first
    List(AuditList),
}

/// Which entries.
#[derive(Debug, Args)]
pub struct AuditList {
    /// Only entries since then: a time (2026-11-22T03:00:00Z) or how long ago (2h)
    #[arg(long, value_name = "T")]
    pub since: Option<When>,
    /// Which part of the list.
    #[command(flatten)]
    pub page: Page,
}

/// `release`
#[derive(Debug, Args)]
pub struct Release {
    /// Confirm that the stores were checked after the restore
    #[arg(long, required = true)]
    pub restored: bool,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_says_what_it_is() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some() || path.ends_with("help"), "{path} has no help");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            for child in command.get_subcommands() {
                walk(child, &path);
            }
        }
        walk(&Cli::command(), "");
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("voiceai-tasker").chain(line.split_whitespace()))
    }

    #[test]
    fn the_documented_forms_are_read() {
        for line in [
            "run",
            "jobs enqueue k --payload {} --queue q --priority 3 --delay 5s --unique u --id i",
            "jobs enqueue k --at 2026-11-22T03:00:00Z",
            "jobs enqueue --file jobs.ndjson --json",
            "jobs list --state dead --queue q --kind k --error-contains x --tenant t --older-than 1h --limit 5",
            "jobs show abc --json",
            "jobs stats --queue q",
            "jobs cancel a b --reason r --yes",
            "jobs discard a --reason r --yes --as ann",
            "jobs replay a b --queue q --kind k --tenant t --error-contains e --since 2h --limit 5 --rate 2/s --execute --yes --reason r",
            "jobs replay --missing --kind k --since 2026-11-22T03:00:00Z",
            "queue list",
            "queue show q",
            "queue pause q --enqueue --reason r --yes",
            "queue resume q --yes",
            "queue drain q --wait 5m --yes",
            "queue purge q --state waiting --reason r --yes",
            "queue clean q --state completed --older-than 7d --yes --reason r",
            "queue set q --concurrency 5 --rate 10/s --key-concurrency 2 --for 1h --yes --reason r",
            "status --json",
            "health --json",
            "cron list",
            "cron run nightly",
            "cron pause nightly --for 1h --yes",
            "cron resume nightly --yes",
            "audit list --limit 5",
            "orchestration schedules --json",
            "orchestration jobs --project p --status failed --limit 5",
            "orchestration show orch-p-1",
            "release --restored --reason r --yes",
            "webhook endpoints --json",
            "webhook endpoints add --tenant t --url https://a.example/ --events call.*,mail.sent --yes",
            "webhook endpoints disable 0193e7a0-0000-7000-8000-000000000000 --reason r --yes",
            "webhook deliveries --state dead --since 2h --limit 5",
            "webhook deliveries 0193e7a0-0000-7000-8000-000000000000",
            "webhook test 0193e7a0-0000-7000-8000-000000000000 --resend --yes",
            "webhook replay --endpoint 0193e7a0-0000-7000-8000-000000000000 --limit 5 --rate 2/s --execute --yes --reason r",
            "backup run",
            "backup run --database billing --schema a --schema b",
            "backup verify --schema a --identity key.txt",
            "backup list",
            "export create alerts --format ndjson --tenant t --filters {\"status\":\"OPEN\"}",
            "export list --tenant t --limit 5",
            "export show 018f6b1e-0000-7000-8000-000000000000",
            "backup verify",
            "backup restore latest --into postgres://localhost/x",
            "healthcheck --ready",
            "doctor --json",
            "config print",
            "config check",
            "config manifest",
            "migrate",
            "completions bash",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            "jobs enqueue",
            "jobs enqueue k --file f",
            "jobs enqueue k --delay 5s --at 2026-11-22T03:00:00Z",
            "jobs enqueue k --priority 11",
            "jobs list --limit 0",
            "jobs list --state failed",
            "jobs replay --missing",
            "jobs replay --rate 5",
            "jobs cancel",
            "queue purge q",
            "queue set q",
            "queue set q --concurrency 0",
            "queue clean q --state dead",
            "release --reason r",
            "cron run",
            "audit list --since yesterday-ish",
        ] {
            assert!(parse(line).is_err(), "{line} was read");
        }
    }
}
