//! `export …`

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_cli::{Column, Failure, Mutation, Output, Question, confirm};

use super::{Service, act, warn};
use crate::cli::{CreateExport, Export as Command, Page};
use crate::jobs::export::{self, Export, Filter, Order};
use crate::jobs::storage;
use crate::operate::database_failure;
use crate::operate::exports::{Ended, Exports};

pub(super) async fn run(command: Command, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create(asked) => create(asked, service, output).await,
        Command::List { tenant, page } => list(tenant, &page, service, output).await,
        Command::Show { id } => show(id, service, output).await,
        Command::Delete { id, mutation } => delete(id, &mutation, service, output).await,
    }
}

async fn exports(service: &Service) -> Result<Exports, Failure> {
    Ok(storage::exports(&service.settings, service.pool().await?).await)
}

async fn create(asked: CreateExport, service: &Service, output: Output) -> Result<(), Failure> {
    let act = act(&asked.mutation)?;
    let filters: Value = serde_json::from_str(&asked.filters)
        .map_err(|error| invalid_filters(format!("--filters is no JSON: {error}")))?;
    if !filters.is_object() {
        return Err(invalid_filters("--filters is no JSON object".to_owned()));
    }
    let order = Order {
        export_type: asked.export_type,
        format: asked.format,
        tenant: asked.tenant,
        filters,
        created_by: act.actor.clone(),
        callback_url: asked.callback_url,
    };
    let exports = exports(service).await?;
    let estimated_rows = exports.check(&order).await?;
    if asked.mutation.dry_run {
        let what = json!({ "type": order.export_type, "tenant": order.tenant, "filters": order.filters });
        let document = json!({ "dry_run": true, "order": what, "estimated_rows": estimated_rows });
        return output
            .one(&document, |_| format!("would order the export, of about {estimated_rows} rows\n"));
    }
    let made = exports.create(&order, &act).await?;
    output.one(&made, |made| format!("{}\n", made.id))
}

fn invalid_filters(message: String) -> Failure {
    Failure::usage("invalid_filters", message, "Write '{\"status\":\"ONLINE\"}', in quotes of the shell.")
}

async fn list(tenant: Option<String>, page: &Page, service: &Service, output: Output) -> Result<(), Failure> {
    let wrong = || {
        Failure::usage(
            "invalid_cursor",
            "--cursor is no `next` of this list",
            "Take `next` of the page before.",
        )
    };
    let after =
        page.cursor.as_deref().map(|cursor| cursor.parse::<Uuid>().map_err(|_| wrong())).transpose()?;
    let pool = service.pool().await?;
    let more = page.limit.saturating_add(1);
    let filter = Filter { tenant, after, ..Filter::default() };
    let mut rows = export::list(&pool, &filter, more).await.map_err(|error| database_failure(&error))?;
    let has_more = rows.len() > page.limit as usize;
    rows.truncate(page.limit as usize);
    let next = rows.last().filter(|_| has_more).map(|row| row.id.to_string());
    let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
    let columns = [
        Column::new("ID", |row: &Export| row.id.to_string()),
        Column::new("CREATED", |row: &Export| format!("{:.0}", row.created_at)),
        Column::new("TYPE", |row: &Export| row.export_type.clone()),
        Column::new("FORMAT", |row: &Export| row.format.clone()),
        Column::new("TENANT", |row: &Export| row.tenant_id.clone().unwrap_or_default()),
        Column::new("STATUS", |row: &Export| row.status.clone()),
        Column::new("ROWS", move |row: &Export| number(row.row_count)),
        Column::new("BYTES", move |row: &Export| number(row.file_size_bytes)),
        Column::new("ERROR", |row: &Export| row.error.clone().unwrap_or_default()),
    ];
    output.list("exports", &rows, next.as_deref(), &columns)
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    export: Export,
    /// Only of a completed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
}

async fn show(id: Uuid, service: &Service, output: Output) -> Result<(), Failure> {
    let exports = exports(service).await?;
    let export = exports.find(id).await?;
    // What is known of an order is shown also where no link to its object can be had.
    let link = exports.link(&export).await.unwrap_or_else(|failure| {
        warn(&format!("there is no link: {} {}", failure.message, failure.remedy));
        None
    });
    output.one(&Shown { export, link }, |shown| {
        let export = &shown.export;
        let rows = export.row_count.map(|rows| format!(", {rows} rows")).unwrap_or_default();
        let error = export.error.as_ref().map(|error| format!("  {error}\n")).unwrap_or_default();
        let callback = callback(export);
        let link = shown.link.as_ref().map(|link| format!("{link}\n")).unwrap_or_default();
        format!(
            "{} {} {} {}{rows}\n{error}{callback}{link}",
            export.id, export.export_type, export.format, export.status
        )
    })
}

fn callback(export: &Export) -> String {
    let (Some(url), state) = (&export.callback_url, export.callback_state.as_deref()) else {
        return String::new();
    };
    let error = export.callback_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let calls = export.callback_attempts;
    match state {
        Some(state) => format!("  callback {url} {state}, {calls} calls{error}\n"),
        None => format!("  callback {url} once it has ended\n"),
    }
}

async fn delete(id: Uuid, mutation: &Mutation, service: &Service, output: Output) -> Result<(), Failure> {
    let act = act(mutation)?;
    let exports = exports(service).await?;
    let found = exports.find(id).await?;
    let is_open = matches!(found.status.as_str(), "PENDING" | "PROCESSING");
    let verb = if is_open { "cancel" } else { "remove" };
    if mutation.dry_run {
        let document = json!({ "dry_run": true, "id": id, "status": found.status });
        return output.one(&document, |_| format!("would {verb} export {id}\n"));
    }
    let object = format!("export {id} of {}", found.export_type);
    confirm(mutation, &Question { verb, object: &object, count: None })?;
    match exports.remove(id, &act).await? {
        Ended::Cancelled(export) => {
            let document = json!({ "id": id, "outcome": "cancelled", "status": export.status });
            output.one(&document, |_| format!("{id} cancelled\n"))
        }
        Ended::Removed => {
            let document = json!({ "id": id, "outcome": "removed" });
            output.one(&document, |_| format!("{id} removed\n"))
        }
    }
}
