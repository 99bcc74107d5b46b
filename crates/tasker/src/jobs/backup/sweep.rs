//! Clears away what earlier runs that were killed have left.
//!
//! Of its own series the holder of the lock clears everything: nothing of it can be under way then. Of other series, whose
//! runs may be under way or may never come again (a database that was renamed), it clears what is older than any run lasts.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::BackupContext;
use super::error::BackupError;
use super::manifest::{Keys, folder, is_dump, is_proof};

/// No run takes so long.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What was cleared away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) uploads: usize,
    pub(super) objects: usize,
}

/// Aborts half uploads, and removes dumps and proofs that have no manifest.
pub(super) async fn sweep(ctx: &BackupContext) -> Result<Swept, BackupError> {
    let (prefix, mark, now) = (folder(&ctx.prefix), ctx.mark(), SystemTime::now());
    let goes = |key: &str, at: Option<SystemTime>| goes(key, at, &mark, now);
    let uploads = ctx.store.abort_uploads(&prefix, |upload| goes(&upload.key, upload.initiated)).await?;
    let listed = ctx.store.list(&prefix).await?;
    let keys: BTreeSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    let mut objects = 0;
    for object in listed.iter().filter(|object| is_dump(&object.key) || is_proof(&object.key)) {
        let has_manifest = Keys::of(&object.key).is_some_and(|of| keys.contains(of.manifest().as_str()));
        if !has_manifest && goes(&object.key, object.modified) {
            ctx.store.delete(&object.key).await?;
            objects += 1;
        }
    }
    if uploads + objects > 0 {
        tracing::warn!(uploads, objects, "cleared away what an interrupted backup had left");
    }
    Ok(Swept { uploads, objects })
}

/// Whether something unfinished goes. A key of another shape is another's, and one of unknown age might be young.
fn goes(key: &str, at: Option<SystemTime>, mark: &str, now: SystemTime) -> bool {
    let Some(keys) = Keys::of(key) else { return false };
    let age = at.and_then(|at| now.duration_since(at).ok());
    keys.id().starts_with(mark) || age.is_some_and(|age| age > ABANDONED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_leftovers_go_at_once_and_others_when_no_run_can_be_behind_them() {
        let now = SystemTime::UNIX_EPOCH + ABANDONED * 10;
        let (young, old) = (Some(now - ABANDONED), Some(now - ABANDONED - Duration::from_secs(1)));
        let ours = "d/20261122T170001Z-v-abcdef00000000.dump";
        let other = "d/20261122T170001Z-v-12345600000000.dump";
        for (key, at, gone) in [
            (ours, young, true),
            (ours, None, true),
            (other, young, false),
            (other, old, true),
            (other, None, false),
            ("d/photo.dump", old, false),
        ] {
            assert_eq!(goes(key, at, "abcdef", now), gone, "{key} {at:?}");
        }
    }
}
