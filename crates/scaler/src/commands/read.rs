//! Commands that only read.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use voiceai_cli::{Column, ExitCode, Failure, Output, human_duration};
use voiceai_postgres::audit::{self, Recorded};
use voiceai_redis::Redis;
use voiceai_service::{Backends, Command, failures};

use super::operate::store_failure;
use super::{AuditArgs, HistoryArgs, PlanArgs};
use crate::act::Providers;
use crate::dispatcher::PROXIES_KEY;
use crate::evaluate::{Evaluation, Recollection, Snapshot};
use crate::heartbeats::HeartbeatReader;
use crate::routing::proxies::{Proxies, ProxyView, read_note};
use crate::script::{ScriptRunner, Surroundings};
use crate::settings::ScalerSettings;
use crate::store::{OrphanRow, Store};
use crate::views::{
    self, Cursor, GroupView, HistoryQuery, HistoryView, OperationView, PlanView, ServerView, StatusView,
    TimerView,
};

type Done = Result<ExitCode, Failure>;

/// One evaluation as the leader would make it now.
struct Look {
    store: Store,
    snapshot: Snapshot,
    evaluations: Vec<Evaluation>,
    lease_held: bool,
}

async fn look(command: &Command<ScalerSettings>) -> Result<Look, Failure> {
    let Backends { redis, pool } = command.backends().await?;
    let store = Store::new(pool.clone());
    let heartbeats = HeartbeatReader::new(redis.clone(), &command.settings.heartbeat_prefix);
    // Servers of others are found by their heartbeats alone; without them the view is still worth showing.
    if let Err(error) = heartbeats.discover().await {
        tracing::error!(%error, "unmanaged servers cannot be looked for");
    }
    let snapshot = Snapshot::read(&store, &heartbeats).await.map_err(|e| store_failure(&e))?;
    let every =
        SignedDuration::try_from(command.settings.evaluation_interval).unwrap_or(SignedDuration::ZERO);
    let past =
        store.past_samples(snapshot.now - snapshot.looks_back(every)).await.map_err(|e| store_failure(&e))?;
    let key = &command.shared.leader.key;
    let held = voiceai_postgres::term::held_reason(&pool, key).await.map_err(|e| failures::database(&e))?;
    let evaluations = Recollection::from_past(past).evaluate(
        &snapshot,
        stale_after(command),
        command.settings.fleet_max,
        held.as_deref(),
    );
    let lease = redis.get(key.as_str()).await.map_err(|e| failures::redis(&e))?;
    Ok(Look { store, snapshot, evaluations, lease_held: lease.is_some() })
}

fn stale_after(command: &Command<ScalerSettings>) -> SignedDuration {
    SignedDuration::try_from(command.settings.heartbeat_stale_after).unwrap_or(SignedDuration::MAX)
}

pub(super) async fn plan(command: Command<ScalerSettings>, arguments: PlanArgs, output: Output) -> Done {
    let Look { snapshot, evaluations, .. } = look(&command).await?;
    let runner = ScriptRunner::start(ScriptRunner::own_binary()).map_err(|error| {
        Failure::failed("script_thread", error.to_string(), "Look at the limits of processes.")
    })?;
    let settings = &command.settings;
    let providers = Providers::new(
        runner,
        settings.scripts_dir.clone(),
        Surroundings::default(),
        settings.script_timeout,
    );
    let environment = command.shared.general.environment.to_ascii_lowercase();
    let mut plans = views::plan(evaluations, &snapshot, &providers, &environment);
    if let Some(group) = &arguments.group {
        plans.retain(|plan| &plan.group == group);
        if plans.is_empty() {
            return Err(Failure::not_found(
                "group_not_found",
                format!("there is no server group `{group}`"),
                "See `voiceai-scaler status` for the names.",
            ));
        }
    }
    output.list(
        "groups",
        &plans,
        None,
        &[
            Column::new("GROUP", |plan: &PlanView| plan.group.clone()),
            Column::new("ACTION", |plan: &PlanView| plan.action.to_owned()),
            Column::new("REASON", |plan: &PlanView| plan.reason.clone()),
            Column::new("SUMMARY", |plan: &PlanView| plan.summary.clone()),
            Column::new("SCRIPT CALLS", |plan: &PlanView| {
                let calls =
                    plan.script_calls.iter().map(|call| format!("{} for {}", call.script, call.server));
                calls.collect::<Vec<_>>().join(", ")
            }),
        ],
    )?;
    Ok(ExitCode::Done)
}

pub(super) async fn status(command: Command<ScalerSettings>, output: Output) -> Done {
    let Look { store, snapshot, evaluations, lease_held } = look(&command).await?;
    let leader = store.leader(&command.shared.leader.key, lease_held).await.map_err(|e| store_failure(&e))?;
    let orphans = store.orphans().await.map_err(|e| store_failure(&e))?;
    let mut view = views::status(&snapshot, &evaluations, leader, orphans, stale_after(&command));
    view.proxies = proxies(&command.settings).await;
    output.one(&view, |view| status_text(view, output))?;
    Ok(ExitCode::Done)
}

/// How long the dispatcher's Redis may take to answer: without it everything else is still worth showing.
const DISPATCHER_WITHIN: Duration = Duration::from_secs(3);

/// What the leader last heard of each proxy that is set here.
async fn proxies(settings: &ScalerSettings) -> Vec<ProxyView> {
    let Ok(known) = Proxies::new(&settings.proxies) else { return Vec::new() };
    let mut views = known.views();
    if views.is_empty() {
        return views;
    }
    let mut redis = settings.dispatcher.clone();
    redis.connect_deadline = DISPATCHER_WITHIN;
    let asked = async { Redis::connect(&redis).await?.get(PROXIES_KEY).await };
    let note = match tokio::time::timeout(DISPATCHER_WITHIN, asked).await {
        Ok(Ok(note)) => {
            note.as_deref().and_then(read_note).ok_or("no leader has told of it lately".to_owned())
        }
        Ok(Err(error)) => Err(format!("the dispatcher's Redis: {error}")),
        Err(_) => Err("the dispatcher's Redis does not answer".to_owned()),
    };
    for view in &mut views {
        let told = note.as_ref().map(|told| told.iter().find(|told| told.proxy == view.proxy));
        match told {
            Ok(Some(told)) => *view = told.clone(),
            Ok(None) => {
                view.error = Some("the leader does not know it: KAMAILIO_RPC_URLS differs there".to_owned());
            }
            Err(why) => view.error = Some(why.clone()),
        }
    }
    views
}

fn status_text(view: &StatusView, output: Output) -> String {
    let mut text = match &view.leader {
        None => "leader: none has been elected yet\n".to_owned(),
        Some(leader) => {
            let lease = if leader.lease_held { "" } else { ", its lease has run out" };
            let held = leader.held_reason.as_ref().map(|why| format!("\nHELD: {why}")).unwrap_or_default();
            let (instance, host, pid, term) = (&leader.instance_id, &leader.host, leader.pid, leader.term);
            format!("leader: {instance} on {host}, process {pid}, term {term}{lease}{held}\n")
        }
    };
    let mut section = |title: &str, table: String| {
        if !table.is_empty() {
            text.push_str(&format!("\n{title}\n{table}"));
        }
    };
    section(
        "groups",
        table(
            output,
            &view.groups,
            &[
                Column::new("GROUP", |group: &GroupView| group.group.clone()),
                Column::new("ACTIVE", |group: &GroupView| count(group.active, group.suspect, "suspect")),
                Column::new("BOOTING", |group: &GroupView| group.booting.to_string()),
                Column::new("DRAINING", |group: &GroupView| group.draining.to_string()),
                Column::new("UNMANAGED", |group: &GroupView| group.unmanaged.to_string()),
                Column::new("MIN-MAX", |group: &GroupView| {
                    group.min.zip(group.max).map(|(min, max)| format!("{min}-{max}")).unwrap_or_default()
                }),
                Column::new("LOAD", |group: &GroupView| format!("{}/{}", group.load, group.capacity)),
                Column::new("NOW", |group: &GroupView| group.summary.clone()),
            ],
        ),
    );
    section(
        "servers",
        table(
            output,
            &view.servers,
            &[
                Column::new("SERVER", |server: &ServerView| server.name.clone()),
                Column::new("GROUP", |server: &ServerView| server.group.clone()),
                Column::new("STATE", |server: &ServerView| server.state.to_owned()),
                Column::new("CALLS", |server: &ServerView| {
                    server.calls.map_or_else(|| "unknown".to_owned(), |calls| calls.to_string())
                }),
                Column::new("ADDRESS", |server: &ServerView| {
                    server.private_ip.clone().or_else(|| server.ip.clone()).unwrap_or_default()
                }),
                Column::new("PROVIDER ID", |server: &ServerView| {
                    server.provider_id.clone().unwrap_or_default()
                }),
            ],
        ),
    );
    let at = view.at;
    section(
        "open operations",
        table(
            output,
            &view.operations,
            &[
                Column::new("SERVER", |operation: &OperationView| operation.server.clone()),
                Column::new("KIND", |operation: &OperationView| operation.kind.to_owned()),
                Column::new("STATE", |operation: &OperationView| operation.state.to_owned()),
                Column::new("FOR", |operation: &OperationView| left(operation.since, at)),
                Column::new("DEADLINE IN", |operation: &OperationView| {
                    operation.deadline.map(|deadline| left(at, deadline)).unwrap_or_default()
                }),
                Column::new("BY", |operation: &OperationView| operation.actor.clone()),
                Column::new("ERROR", |operation: &OperationView| operation.error.clone().unwrap_or_default()),
            ],
        ),
    );
    section(
        "proxies",
        table(
            output,
            &view.proxies,
            &[
                Column::new("PROXY", |proxy: &ProxyView| proxy.proxy.clone()),
                Column::new("RECORDS", |proxy: &ProxyView| {
                    if proxy.verified { "loaded".to_owned() } else { "NOT VERIFIED".to_owned() }
                }),
                Column::new("FOR", |proxy: &ProxyView| left(proxy.since, at)),
                Column::new("DESTINATIONS", |proxy: &ProxyView| {
                    proxy.destinations.map(|count| count.to_string()).unwrap_or_default()
                }),
                Column::new("WHY", |proxy: &ProxyView| {
                    proxy.error.clone().unwrap_or_else(|| proxy.differences.join("; "))
                }),
            ],
        ),
    );
    section(
        "timers",
        table(
            output,
            &view.timers,
            &[
                Column::new("GROUP", |timer: &TimerView| timer.group.clone()),
                Column::new("SERVER", |timer: &TimerView| timer.server.clone().unwrap_or_default()),
                Column::new("RULE", |timer: &TimerView| timer.rule.clone()),
                Column::new("ENDS IN", |timer: &TimerView| {
                    timer.until.map_or_else(|| "not by itself".to_owned(), |until| left(at, until))
                }),
                Column::new("WHY", |timer: &TimerView| timer.why.clone()),
            ],
        ),
    );
    section(
        "orphans: servers with our labels that no row stands for",
        table(
            output,
            &view.orphans,
            &[
                Column::new("SERVER", |orphan: &OrphanRow| orphan.name.clone()),
                Column::new("PROVIDER", |orphan: &OrphanRow| orphan.provider.clone()),
                Column::new("PROVIDER ID", |orphan: &OrphanRow| orphan.provider_id.clone()),
                Column::new("GROUP", |orphan: &OrphanRow| orphan.group.clone()),
                Column::new("SEEN FOR", |orphan: &OrphanRow| left(orphan.first_seen, at)),
                Column::new("VERDICT", |orphan: &OrphanRow| orphan.verdict.clone()),
                Column::new("DELETION", |orphan: &OrphanRow| orphan.outcome.clone().unwrap_or_default()),
            ],
        ),
    );
    text
}

fn table<T>(output: Output, rows: &[T], columns: &[Column<'_, T>]) -> String {
    if rows.is_empty() { String::new() } else { output.table(rows, columns) }
}

fn count(number: u32, more: u32, word: &str) -> String {
    if more == 0 { number.to_string() } else { format!("{number} + {more} {word}") }
}

fn left(from: Timestamp, to: Timestamp) -> String {
    let left = to.duration_since(from);
    if left.is_negative() { "overdue".to_owned() } else { human_duration(left.unsigned_abs()) }
}

pub(super) async fn history(
    command: Command<ScalerSettings>,
    arguments: HistoryArgs,
    output: Output,
) -> Done {
    let before = match &arguments.cursor {
        None => None,
        Some(text) => Some(Cursor::parse(text).ok_or_else(|| {
            Failure::usage(
                "cursor_invalid",
                format!("`{text}` is no cursor"),
                "Use the cursor that a list ended with.",
            )
        })?),
    };
    let store = Store::new(command.pool().await?);
    let query = HistoryQuery {
        group: arguments.group,
        actions_only: arguments.actions_only,
        limit: arguments.limit,
        before,
    };
    let (lines, next) = store.history(&query).await.map_err(|e| store_failure(&e))?;
    output.list(
        "history",
        &lines,
        next.as_deref(),
        &[
            Column::new("AT", |line: &HistoryView| line.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            Column::new("GROUP", |line: &HistoryView| line.group.clone()),
            Column::new("SERVER", |line: &HistoryView| line.server.clone().unwrap_or_default()),
            Column::new("WHAT", |line: &HistoryView| line.what.clone()),
            Column::new("OUTCOME", |line: &HistoryView| line.outcome.clone()),
            Column::new("SUMMARY", |line: &HistoryView| line.summary.clone().unwrap_or_default()),
            Column::new("TERM", |line: &HistoryView| {
                line.term.map(|term| term.to_string()).unwrap_or_default()
            }),
        ],
    )?;
    Ok(ExitCode::Done)
}

pub(super) async fn audit(command: Command<ScalerSettings>, arguments: AuditArgs, output: Output) -> Done {
    let pool = command.pool().await?;
    let limit = i64::from(arguments.limit);
    let mut entries = audit::list(&pool, arguments.cursor, arguments.since, limit + 1)
        .await
        .map_err(|e| failures::database(&e))?;
    let page = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let more = entries.len() > page;
    entries.truncate(page);
    let next = entries.last().filter(|_| more).map(|entry| entry.id.to_string());
    output.list(
        "entries",
        &entries,
        next.as_deref(),
        &[
            Column::new("AT", |entry: &Recorded| format!("{:.0}", entry.at)),
            Column::new("ACTOR", |entry: &Recorded| entry.actor.clone()),
            Column::new("ACTION", |entry: &Recorded| entry.action.clone()),
            Column::new("SUBJECT", |entry: &Recorded| entry.subject.clone()),
            Column::new("REASON", |entry: &Recorded| entry.reason.clone().unwrap_or_default()),
        ],
    )?;
    Ok(ExitCode::Done)
}

pub(super) async fn migrate(command: Command<ScalerSettings>, output: Output) -> Done {
    let applied = command.migrate().await?;
    output.one(&serde_json::json!({ "applied": applied }), |_| {
        if applied.is_empty() {
            "nothing to do: the schema is this version's\n".to_owned()
        } else {
            applied.iter().map(|name| format!("applied {name}\n")).collect()
        }
    })?;
    Ok(ExitCode::Done)
}
