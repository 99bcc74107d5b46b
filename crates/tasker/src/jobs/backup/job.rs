//! Backup and proof as jobs of the queue.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use voiceai_cli::ExitCode;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use super::error::BackupError;
use super::{BackupContext, run, verify, watch};

/// Takes a backup, and proves it where the payload says `"verify": true`.
///
/// Run again under the same job id, it goes on with the backup it has already taken.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupDatabase {
    /// Restore it into a scratch database at once and compare.
    #[serde(default)]
    pub verify: bool,
    /// A further database by its name; absent for the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Only these schemas; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<String>,
}

/// How long to wait for another backup of the same database to end.
const BUSY_WAIT: Duration = Duration::from_secs(60);
/// Longest attempt of either.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);

impl Job for BackupDatabase {
    const KIND: &'static str = "backup.database";
    const ATTEMPT_TIMEOUT: Duration = LONGEST;
    type Context = BackupContext;

    async fn run(&self, ctx: &BackupContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let cancel = attempt.cancelled();
        let ctx = &ctx.series(self.database.as_deref(), &self.schemas).map_err(sorted)?;
        let taken = match run(ctx, Some(attempt.id().as_str()), cancel).await {
            Ok(taken) => taken,
            Err(BackupError::Busy { database, by }) => {
                tracing::info!(database, by, "another backup is under way; this one waits");
                return Ok(Outcome::Snooze(BUSY_WAIT));
            }
            Err(error) => return Err(sorted(error)),
        };
        let proved = match taken.proof {
            Some(proof) => Some(proof),
            None if self.verify => Some(verify(ctx, &taken.manifest.id, cancel).await.map_err(sorted)?),
            None => None,
        };
        Ok(Outcome::DoneWith(serde_json::json!({
            "backup_id": taken.manifest.id,
            "key": taken.manifest.key,
            "size_bytes": taken.manifest.bytes,
            "sha256": taken.manifest.sha256,
            "tables": taken.manifest.content.tables.len(),
            "rows": taken.manifest.content.rows(),
            "proved_at": proved.filter(|proof| proof.proved).map(|proof| proof.at),
            "removed": taken.removed,
        })))
    }
}

fn latest() -> String {
    "latest".to_owned()
}

/// Proves a backup by a restore into a scratch database. People are told at once when it is no good.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupVerify {
    /// The backup's id; `latest` is the newest of the series.
    #[serde(default = "latest")]
    pub id: String,
    /// A further database by its name; absent for the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The schemas of a series of its own; empty for that of the whole database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<String>,
}

impl Job for BackupVerify {
    const KIND: &'static str = "backup.verify";
    const ATTEMPT_TIMEOUT: Duration = LONGEST;
    type Context = BackupContext;

    async fn run(&self, ctx: &BackupContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let series = ctx.series(self.database.as_deref(), &self.schemas).map_err(sorted)?;
        match verify(&series, &self.id, attempt.cancelled()).await {
            Ok(proof) => Ok(Outcome::DoneWith(serde_json::json!(proof))),
            Err(error @ (BackupError::Damaged { .. } | BackupError::Differs { .. })) => {
                if let Some(pool) = &ctx.pool {
                    let (place, key) = (series.database.place(), attempt.id().as_str());
                    let reason = error.to_string();
                    // Failing to tell must be tried again, and the proof with it.
                    watch::notify(pool, "backup_disproved", place, &reason, key, Timestamp::now()).await?;
                }
                Err(JobError::discard(error))
            }
            Err(error) => Err(sorted(error)),
        }
    }
}

/// What a person must mend first is not tried again; what may pass by itself is.
fn sorted(error: BackupError) -> JobError {
    let for_a_person = matches!(error.exit_code(), ExitCode::Refused | ExitCode::NotFound);
    if for_a_person { JobError::discard(error) } else { JobError::retry(error) }
}
