//! Clears away what earlier runs that were killed have left. Called by the holder of the lock alone: nothing of this mark
//! can be under way then.

use std::collections::BTreeSet;

use super::BackupContext;
use super::error::BackupError;
use super::manifest::{Keys, folder, is_dump};

/// What was cleared away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) uploads: usize,
    pub(super) dumps: usize,
}

/// Aborts this database's half uploads and removes its dumps that never got a manifest.
pub(super) async fn sweep(ctx: &BackupContext) -> Result<Swept, BackupError> {
    let (prefix, mark) = (folder(&ctx.prefix), ctx.mark());
    let ours = |key: &str| Keys::of(key).is_some_and(|keys| keys.id().starts_with(&mark));
    let uploads = ctx.store.abort_uploads(&prefix, |upload| ours(&upload.key)).await?;
    let objects = ctx.store.list(&prefix).await?;
    let keys: BTreeSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
    let mut dumps = 0;
    for key in keys.iter().filter(|key| is_dump(key) && ours(key)) {
        let has_manifest = Keys::of(key).is_some_and(|of| keys.contains(of.manifest().as_str()));
        if !has_manifest {
            ctx.store.delete(key).await?;
            dumps += 1;
        }
    }
    if uploads + dumps > 0 {
        tracing::warn!(uploads, dumps, "cleared away what an interrupted backup had left");
    }
    Ok(Swept { uploads, dumps })
}
