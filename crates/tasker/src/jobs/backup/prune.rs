//! Removing the backups that retention lets go.

use super::BackupContext;
use super::catalogue::{self, Entry};
use super::error::BackupError;
use super::record;
use super::retention::{Judged, Worth, superfluous};

/// Removes what [`superfluous`] names of this series, and returns the ids. Called by the holder of the lock alone.
///
/// The manifest goes first: from then on it is no backup any more, and what a kill leaves of it is swept by the next run.
/// A manifest that cannot be read is a person's to look at: it is never removed.
///
/// # Errors
/// [`BackupError::Store`]; what was removed before stays removed.
pub(super) async fn prune(ctx: &BackupContext) -> Result<Vec<String>, BackupError> {
    let entries = catalogue::series(ctx).await?;
    let judged: Vec<Judged> = entries.iter().filter_map(judge).collect();
    let mut removed = Vec::new();
    for id in superfluous(ctx.policy.keep, &judged) {
        let Some(entry) = entries.iter().find(|entry| entry.keys.id() == id) else { continue };
        for key in [entry.keys.manifest(), entry.keys.dump(), entry.keys.proof()] {
            ctx.store.delete(&key).await?;
        }
        record::removed(ctx, &id).await;
        tracing::info!(backup_id = id, key = entry.keys.dump(), "backup removed by retention");
        removed.push(id);
    }
    if !removed.is_empty() {
        let count = u64::try_from(removed.len()).unwrap_or(u64::MAX);
        opentelemetry::global::meter("voiceai")
            .u64_counter("voiceai.backup.removed")
            .with_unit("{backup}")
            .build()
            .add(count, &[]);
    }
    Ok(removed)
}

fn judge(entry: &Entry) -> Option<Judged> {
    let manifest = entry.manifest.as_ref().ok()?;
    let worth = match (&entry.problem, &entry.proof) {
        (Some(_), _) => Worth::Bad,
        (None, Some(proof)) if proof.proved => Worth::Proved,
        (None, Some(_)) => Worth::Bad,
        (None, None) => Worth::Stored,
    };
    Some(Judged { id: manifest.id.clone(), at: manifest.snapshot_at, worth })
}
