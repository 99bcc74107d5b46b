//! `export …`

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_aws::ObjectStore;
use voiceai_cli::{Column, Failure, Output};

use super::{Service, act};
use crate::cli::{CreateExport, Export as Command, Page};
use crate::jobs::export::{self, Export, ExportError, Order};
use crate::operate::{database_failure, trail, webhook};

pub(super) async fn run(command: Command, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create(asked) => create(asked, service, output).await,
        Command::List { tenant, page } => list(tenant.as_deref(), &page, service, output).await,
        Command::Show { id } => show(id, service, output).await,
    }
}

async fn create(asked: CreateExport, service: &Service, output: Output) -> Result<(), Failure> {
    let act = act(&asked.mutation)?;
    if service.settings.export_store.is_none() {
        return Err(no_bucket());
    }
    if let Some(url) = &asked.callback_url {
        check_callback(url, service)?;
    }
    let filters: Value =
        serde_json::from_str(&asked.filters).ok().filter(Value::is_object).ok_or_else(|| {
            Failure::usage("invalid_filters", "--filters is no JSON object", "Write {\"status\":\"ONLINE\"}.")
        })?;
    let pool = service.pool().await?;
    let order = Order {
        export_type: asked.export_type,
        format: asked.format,
        tenant: asked.tenant,
        filters,
        created_by: act.actor.clone(),
        callback_url: asked.callback_url,
    };
    export::check(&pool, &order, &service.settings.exports.tables).await.map_err(|error| refused(&error))?;
    let what = json!({ "type": order.export_type, "tenant": order.tenant, "filters": order.filters });
    if asked.mutation.dry_run {
        return output
            .one(&json!({ "dry_run": true, "order": what }), |_| "would order the export\n".to_owned());
    }
    trail::record(&pool, &act, "export.create", &order.export_type, what).await?;
    let made = export::create(&pool, &order).await.map_err(|error| database_failure(&error))?;
    output.one(&made, |made| format!("{}\n", made.id))
}

/// As far as an address can be judged without looking its name up; each call judges what the name leads to.
fn check_callback(url: &str, service: &Service) -> Result<(), Failure> {
    let refused = |why: String| {
        let remedy =
            "Give an https:// address of the public internet; for development see WEBHOOK_ALLOW_NETWORKS.";
        Failure::refused("callback_url", format!("--callback-url {url}: {why}"), remedy)
    };
    if url.len() > 2_000 {
        return Err(refused("at most 2000 characters are wanted".to_owned()));
    }
    let parsed = url::Url::parse(url).map_err(|error| refused(error.to_string()))?;
    webhook::guard(&service.settings).check_url(&parsed).map_err(|error| refused(error.to_string()))
}

fn refused(error: &ExportError) -> Failure {
    match error {
        ExportError::Database(source) => database_failure(source),
        other => {
            Failure::refused("export_order", other.to_string(), "Correct the order as the message says.")
        }
    }
}

fn no_bucket() -> Failure {
    Failure::refused(
        "no_bucket",
        "neither EXPORTS_S3_BUCKET nor S3_BUCKET is set, so there are no exports",
        "Set EXPORTS_S3_BUCKET.",
    )
}

async fn list(tenant: Option<&str>, page: &Page, service: &Service, output: Output) -> Result<(), Failure> {
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
    let mut rows =
        export::list(&pool, tenant, after, more).await.map_err(|error| database_failure(&error))?;
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
    let found = export::get(&service.pool().await?, id).await.map_err(|error| database_failure(&error))?;
    let unknown =
        || Failure::not_found("export_not_found", format!("no export {id}"), "Look with `export list`.");
    let export = found.ok_or_else(unknown)?;
    let link = match (&export.status[..], &export.file_path) {
        ("COMPLETED", Some(key)) => {
            let settings = service.settings.export_store.as_ref().ok_or_else(no_bucket)?;
            let link =
                ObjectStore::new(settings).await.presigned(key, service.settings.exports.link_ttl).await;
            let failed = |error: voiceai_aws::S3Error| {
                Failure::failed("export_link", error.to_string(), error.kind().remedy())
            };
            Some(link.map_err(failed)?)
        }
        _ => None,
    };
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
