//! The backup as a job of the queue.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use voiceai_cli::ExitCode;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use super::error::BackupError;
use super::{BackupContext, run, verify};

/// Takes a backup of the service's database, and proves it where the payload says `"verify": true`.
///
/// Run again under the same job id, it goes on with the backup it has already taken.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupDatabase {
    /// Restore it into a scratch database at once and compare.
    #[serde(default)]
    pub verify: bool,
}

/// How long to wait for another backup of the same database to end.
const BUSY_WAIT: Duration = Duration::from_secs(60);

impl Job for BackupDatabase {
    const KIND: &'static str = "backup.database";
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12 * 60 * 60);
    type Context = BackupContext;

    async fn run(&self, ctx: &BackupContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let cancel = attempt.cancelled();
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
        })))
    }
}

/// What a person must mend first is not tried again; what may pass by itself is.
fn sorted(error: BackupError) -> JobError {
    if error.exit_code() == ExitCode::Refused { JobError::discard(error) } else { JobError::retry(error) }
}
