//! `backup …`

use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use voiceai_cli::{Column, ExitCode, Failure, Mutation, Output, human_duration};
use voiceai_config::catalogue::postgres::DATABASE_URL;
use voiceai_config::{General, Reader};
use voiceai_postgres::{PgPool, PostgresSettings};
use voiceai_runtime::{Secret, Shutdown};
use voiceai_service::{bare_command, failures};

use super::{Service, act, warn};
use crate::IDENTITY;
use crate::cli::{Backup, Identity, Page, Series};
use crate::jobs::backup::{self, Address, BackupContext, Entry, Manifest, Proof};
use crate::jobs::storage;
use crate::operate::{Act, trail};
use crate::settings::TaskerSettings;

/// What the commands know that work while our tables, or the whole database, are gone.
#[derive(Debug)]
struct Ground {
    general: General,
    settings: TaskerSettings,
    /// Absent where `DATABASE_URL` is not set: then nothing tells which backups are this database's own.
    database_url: Option<Secret>,
}

/// Runs one of the `backup` commands, of which only `run` needs our tables.
pub(super) async fn dispatch(command: Backup, json: bool) -> ExitCode {
    let read = |reader: &Reader<'_>| (TaskerSettings::read(reader), reader.optional(&DATABASE_URL));
    let body = |general, (settings, database_url)| async move {
        let ground = Ground { general, settings, database_url };
        Box::pin(run(command, &ground, Output::new(json))).await.map(|()| ExitCode::Done)
    };
    bare_command(IDENTITY, json, read, body).await
}

async fn run(command: Backup, ground: &Ground, output: Output) -> Result<(), Failure> {
    match command {
        Backup::Run { series, mutation } => take(&series, &mutation, ground, output).await,
        Backup::List { page } => list(&page, ground, output).await,
        Backup::Verify { id, series, identity } => {
            let asked = Asked { id, series, identity };
            verify(asked, ground, output).await
        }
        Backup::Restore { id, into, series, identity, mutation } => {
            let asked = Asked { id, series, identity };
            restore(asked, into, &mutation, ground, output).await
        }
    }
}

/// A backup as a command names it.
struct Asked {
    id: String,
    series: Series,
    identity: Identity,
}

impl Asked {
    fn apply(&self, mut context: BackupContext) -> Result<BackupContext, Failure> {
        if let Some(file) = &self.identity.file {
            context.policy.identity_file = Some(file.clone());
        }
        Ok(context.series(self.series.database.as_deref(), &self.series.schemas)?)
    }
}

/// What a running command of another noun works with.
pub(super) async fn context(service: &Service, pool: PgPool) -> Result<Option<BackupContext>, Failure> {
    let shared = &service.shared;
    storage::backup_context(&service.settings, &shared.general, &shared.postgres.url, Some(pool)).await
}

impl Ground {
    async fn context(&self, pool: Option<PgPool>) -> Result<BackupContext, Failure> {
        // A stand-in that is nobody's database: no backup is taken for its own.
        let nobody = Secret::new("postgres://localhost/-");
        let url = self.database_url.as_ref().unwrap_or(&nobody);
        storage::backup_context(&self.settings, &self.general, url, pool).await?.ok_or_else(no_bucket)
    }

    fn database_url(&self) -> Result<&Secret, Failure> {
        self.database_url.as_ref().ok_or_else(|| {
            Failure::refused(
                "invalid_configuration",
                "DATABASE_URL is not set",
                "Set DATABASE_URL, or its parts.",
            )
        })
    }

    /// Our own database, when it answers soon.
    async fn pool(&self) -> Result<PgPool, Failure> {
        let url = self.database_url()?.clone();
        let settings =
            PostgresSettings { connect_deadline: Duration::from_secs(5), ..PostgresSettings::new(url) };
        voiceai_postgres::connect(&settings).await.map_err(|error| failures::postgres_connect(&error))
    }
}

fn no_bucket() -> Failure {
    Failure::refused("no_bucket", "S3_BUCKET is not set, so there are no backups", "Set S3_BUCKET.")
}

/// Cancelled by Ctrl-C or SIGTERM, so that a command leaves nothing half done behind.
fn cancellable() -> Result<CancellationToken, Failure> {
    let shutdown = Shutdown::on_signals()
        .map_err(|error| Failure::failed("signals", error.to_string(), "Report this."))?;
    Ok(shutdown.stopping())
}

async fn take(series: &Series, mutation: &Mutation, ground: &Ground, output: Output) -> Result<(), Failure> {
    let act = act(mutation)?;
    if mutation.dry_run {
        let context = ground.context(None).await?.series(series.database.as_deref(), &series.schemas)?;
        let place = format!("s3://{}/{}", context.store.bucket(), context.prefix);
        return output
            .one(&json!({ "dry_run": true, "to": place }), |_| format!("would take a backup to {place}\n"));
    }
    let pool = ground.pool().await?;
    let context = ground.context(Some(pool.clone())).await?;
    let context = context.series(series.database.as_deref(), &series.schemas)?;
    let details = json!({ "schemas": context.schemas });
    trail::record(&pool, &act, "backup.run", context.database.place(), details).await?;
    let taken = backup::run(&context, None, &cancellable()?).await?;
    let shown = Shown::of(&taken.manifest, taken.proof.as_ref());
    output.one(&shown, |shown| format!("{}\n", shown.id))
}

/// A backup as it is listed.
#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    key: String,
    database: String,
    environment: String,
    /// The moment the data are from.
    snapshot_at: Option<jiff::Timestamp>,
    finished_at: Option<jiff::Timestamp>,
    size_bytes: Option<u64>,
    sha256: Option<String>,
    /// The only schemas it holds; empty for the whole database.
    schemas: Vec<String>,
    encrypted: bool,
    tables: Option<usize>,
    rows: Option<u64>,
    server_version: Option<String>,
    /// `stored`, `proved`, `disproved` or `unusable`.
    state: &'static str,
    proved_at: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

impl Shown {
    fn of(manifest: &Manifest, proof: Option<&Proof>) -> Self {
        Self {
            id: manifest.id.clone(),
            key: manifest.key.clone(),
            database: manifest.database.name.clone(),
            environment: manifest.environment.clone(),
            snapshot_at: Some(manifest.snapshot_at),
            finished_at: Some(manifest.finished_at),
            size_bytes: Some(manifest.bytes),
            sha256: Some(manifest.sha256.clone()),
            schemas: manifest.only_schemas.clone(),
            encrypted: manifest.encryption.is_some(),
            tables: Some(manifest.content.tables.len()),
            rows: Some(manifest.content.rows()),
            server_version: Some(manifest.database.server_version.clone()),
            state: match proof {
                Some(proof) if proof.proved => "proved",
                Some(_) => "disproved",
                None => "stored",
            },
            proved_at: proof.filter(|proof| proof.proved).map(|proof| proof.at),
            problems: proof.map(|proof| proof.problems.clone()).unwrap_or_default(),
        }
    }

    fn listed(entry: &Entry) -> Self {
        let mut shown = match &entry.manifest {
            Ok(manifest) => Self::of(manifest, entry.proof.as_ref()),
            Err(problem) => Self {
                id: entry.keys.id().to_owned(),
                key: entry.keys.dump(),
                database: String::new(),
                environment: String::new(),
                snapshot_at: None,
                finished_at: None,
                size_bytes: None,
                sha256: None,
                schemas: Vec::new(),
                encrypted: false,
                tables: None,
                rows: None,
                server_version: None,
                state: "unusable",
                proved_at: None,
                problems: vec![problem.clone()],
            },
        };
        if let Some(problem) = &entry.problem {
            shown.state = "unusable";
            shown.problems.push(problem.clone());
        }
        shown
    }
}

async fn list(page: &Page, ground: &Ground, output: Output) -> Result<(), Failure> {
    let context = ground.context(None).await?;
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let listing = backup::list(&context, limit, page.cursor.as_deref()).await?;
    let rows: Vec<Shown> = listing.backups.iter().map(Shown::listed).collect();
    let columns = [
        Column::new("ID", |row: &Shown| row.id.clone()),
        Column::new("SNAPSHOT", |row: &Shown| {
            row.snapshot_at.map(|at| format!("{at:.0}")).unwrap_or_default()
        }),
        Column::new("DATABASE", |row: &Shown| row.database.clone()),
        Column::new(
            "SCHEMAS",
            |row: &Shown| {
                if row.schemas.is_empty() { "all".to_owned() } else { row.schemas.join(",") }
            },
        ),
        Column::new("BYTES", |row: &Shown| row.size_bytes.map(|bytes| bytes.to_string()).unwrap_or_default()),
        Column::new("ROWS", |row: &Shown| row.rows.map(|rows| rows.to_string()).unwrap_or_default()),
        Column::new("STATE", |row: &Shown| row.state.to_owned()),
        Column::new("KEY", |row: &Shown| row.key.clone()),
        Column::new("PROBLEMS", |row: &Shown| row.problems.join("; ")),
    ];
    output.list("backups", &rows, listing.next.as_deref(), &columns)
}

async fn verify(asked: Asked, ground: &Ground, output: Output) -> Result<(), Failure> {
    // The row beside the bucket's proof is written where our tables are there, and not missed where they are not.
    ground.database_url()?;
    let pool = ground.pool().await.ok();
    let context = asked.apply(ground.context(pool).await?)?;
    let proof = backup::verify(&context, &asked.id, &cancellable()?).await?;
    let text = |proof: &Proof| {
        let took = human_duration(std::time::Duration::from_millis(proof.duration_ms));
        let word = if proof.proved { "proved" } else { "NOT PROVED" };
        let mut text = format!(
            "{} {word}: {} rows in {} tables compared in {took}\n",
            proof.id, proof.rows, proof.tables
        );
        for problem in &proof.problems {
            text.push_str(&format!("  {problem}\n"));
        }
        text
    };
    output.one(&proof, text)?;
    if proof.proved {
        return Ok(());
    }
    let message = format!("backup {} is not proved: {}", proof.id, proof.problems.join("; "));
    Err(Failure::failed("backup_disproved", message, "Take a new backup at once, and look after the store."))
}

async fn restore(
    asked: Asked,
    into: String,
    mutation: &Mutation,
    ground: &Ground,
    output: Output,
) -> Result<(), Failure> {
    let act = act(mutation)?;
    let own = ground.context(None).await?;
    let mut context = asked.apply(own.clone())?;
    let target = Address::parse("--into", &Secret::new(into))?;
    if mutation.dry_run {
        let (_, manifest) = backup::find(&context, &asked.id).await?;
        let document = json!({ "dry_run": true, "id": manifest.id, "into": target.place() });
        return output.one(&document, |_| format!("would restore {} into {}\n", manifest.id, target.place()));
    }
    // The series finds the backup; what must not be restored into is the service's own database.
    let (keys, _) = backup::find(&context, &asked.id).await?;
    context.database = own.database;
    let restored = backup::restore(&context, keys.id(), &target, &cancellable()?).await?;
    note_restore(ground, &act, &restored.manifest.id, &restored.into).await;
    output.one(&restored, |restored| {
        let how = if restored.digests_compared {
            ""
        } else {
            " by their number; their content could not be compared, as this server hashes text in another way"
        };
        format!(
            "{} restored into {}: {} rows in {} tables are as the manifest says{how}\n",
            restored.manifest.id, restored.into, restored.rows, restored.tables
        )
    })
}

/// A restore works while our own database is gone; then its audit row is said to be missing.
async fn note_restore(ground: &Ground, act: &Act, id: &str, into: &str) {
    let noted = match ground.pool().await {
        Ok(pool) => trail::record(&pool, act, "backup.restore", id, json!({ "into": into })).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = noted {
        warn(&format!("the audit row of the restore could not be written: {}", failure.message));
    }
}
