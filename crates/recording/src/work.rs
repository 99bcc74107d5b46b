//! Folders for the files of a recording under work: one each, removed when the work ends, and by whoever comes next when the
//! process was killed.
//!
//! A folder is in use as long as somebody holds the lock in it; the kernel gives that up with the process. Making and clearing
//! folders happens under a lock of the parent, so that no folder is taken for abandoned before its lock is held.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock, statvfs};

use crate::error::RecordingError;

const PREFIX: &str = "job-";
const LOCK: &str = "lock";

/// A folder of one job. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    path: PathBuf,
    _lock: File,
}

impl WorkFolder {
    /// Makes a folder in `parent`, clears what was abandoned there, and checks that `bytes` and then `spare` more are free.
    pub(crate) async fn make(parent: &Path, bytes: u64, spare: u64) -> Result<Self, RecordingError> {
        let parent = parent.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            let guard = lock_parent(&parent)?;
            clear_in(&parent);
            check_space(&parent, bytes, spare)?;
            let path = parent.join(format!("{PREFIX}{}", uuid::Uuid::now_v7()));
            let tried = "make the folder";
            DirBuilder::new().mode(0o700).create(&path).map_err(RecordingError::file(tried, &path))?;
            let lock = lock_file(&path.join(LOCK)).map_err(RecordingError::file("make a lock in", &path))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| RecordingError::file("lock", &path)(error.into()))?;
            drop(guard);
            Ok(Self { path, _lock: lock })
        });
        made.await.unwrap_or(Err(RecordingError::Cancelled))
    }

    /// A file's path in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a folder of a recording under work stays behind");
        }
    }
}

/// Removes what killed processes left in `parent`; how many folders that were. Folders in use are left alone.
pub async fn clear(parent: &Path) -> usize {
    let parent = parent.to_owned();
    let cleared = tokio::task::spawn_blocking(move || {
        if !parent.is_dir() {
            return 0;
        }
        match lock_parent(&parent) {
            Ok(_guard) => clear_in(&parent),
            Err(error) => {
                tracing::warn!(%error, "folders of recordings cannot be cleared");
                0
            }
        }
    });
    cleared.await.unwrap_or(0)
}

fn lock_parent(parent: &Path) -> Result<File, RecordingError> {
    std::fs::create_dir_all(parent).map_err(RecordingError::file("make the folder", parent))?;
    let path = parent.join(LOCK);
    let lock = lock_file(&path).map_err(RecordingError::file("make a lock in", parent))?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|error| RecordingError::file("lock", &path)(error.into()))?;
    Ok(lock)
}

/// Never through a link that somebody else has put there.
fn lock_file(path: &Path) -> io::Result<File> {
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).custom_flags(no_follow).open(path)
}

fn clear_in(parent: &Path) -> usize {
    let entries = std::fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok);
    let folders = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    folders.filter(|entry| clear_one(&entry.path())).count()
}

fn clear_one(folder: &Path) -> bool {
    // A folder without a lock was killed in the making: the parent's lock is ours.
    let lock = OpenOptions::new().write(true).open(folder.join(LOCK)).ok();
    if lock.as_ref().is_some_and(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()) {
        return false;
    }
    match std::fs::remove_dir_all(folder) {
        Ok(()) => {
            tracing::info!(folder = %folder.display(), "removed what a killed process left of a recording");
            true
        }
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove what a killed process left");
            false
        }
    }
}

fn check_space(folder: &Path, bytes: u64, spare: u64) -> Result<(), RecordingError> {
    // A file system that does not say is found full by the write.
    let Ok(disk) = statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = bytes.saturating_add(spare);
    if free >= needed {
        return Ok(());
    }
    let why = format!(
        "{bytes} bytes are needed and {spare} must stay free (RECORDING_WORK_FREE_MIN), but {free} are free"
    );
    Err(RecordingError::DiskFull { folder: folder.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_goes_with_its_work_and_an_abandoned_one_with_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let mine = WorkFolder::make(parent.path(), 1, 0).await.unwrap();
        std::fs::write(mine.file("original"), "x").unwrap();
        let abandoned = parent.path().join("job-left");
        std::fs::create_dir(&abandoned).unwrap();
        std::fs::write(abandoned.join("lock"), "").unwrap();
        std::fs::write(abandoned.join("original"), "x").unwrap();
        std::fs::create_dir(parent.path().join("job-unlocked")).unwrap();
        std::fs::create_dir(parent.path().join("somebody-elses")).unwrap();
        assert_eq!(clear(parent.path()).await, 2);
        assert!(!abandoned.exists() && mine.file("original").exists());
        assert!(parent.path().join("somebody-elses").exists());
        let path = mine.path().to_owned();
        drop(mine);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_full_disk_is_said_before_anything_is_fetched() {
        let parent = tempfile::tempdir().unwrap();
        let full = WorkFolder::make(parent.path(), 1, u64::MAX / 2).await.unwrap_err();
        assert!(matches!(full, RecordingError::DiskFull { .. }) && !full.is_final(), "{full}");
        assert!(full.to_string().contains("RECORDING_WORK_FREE_MIN"), "{full}");
    }

    #[tokio::test]
    async fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let victim = parent.path().join("victim");
        std::os::unix::fs::symlink(&victim, parent.path().join("lock")).unwrap();
        assert!(WorkFolder::make(parent.path(), 1, 0).await.is_err());
        assert!(!victim.exists());
    }
}
