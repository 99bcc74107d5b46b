//! A file that is replaced as a whole or not at all.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SUFFIX: &str = ".tmp";
/// Nobody writes a list for so long: what is older was left by a killed process.
const STALE: Duration = Duration::from_secs(3_600);

/// The file could not be replaced; what was there is still there.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}", path = path.display())]
pub struct PublishError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes `text` beside `path`, has it reach the disk, and renames it. A reader sees the old file or the new one, also after a power
/// cut. Anybody may read it.
///
/// # Errors
/// [`PublishError`], which names what was tried.
pub fn publish(path: &Path, text: &str) -> Result<(), PublishError> {
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |source| PublishError { step, path, source }
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!(".{name}.");
    sweep(folder, &prefix);
    // A name of its own: two processes may be at it at the same time.
    let mut beside = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(SUFFIX)
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(failed("create a file beside", path))?;
    beside.write_all(text.as_bytes()).map_err(failed("write beside", path))?;
    beside.as_file().sync_all().map_err(failed("write beside", path))?;
    beside.persist(path).map_err(|error| failed("replace", path)(error.error))?;
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("have the disk keep", folder))
}

/// Removes what killed processes left. That it cannot be removed harms nobody.
fn sweep(folder: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let age =
            entry.metadata().and_then(|about| about.modified()).map(|at| at.elapsed().unwrap_or_default());
        if name.starts_with(prefix) && name.ends_with(SUFFIX) && age.is_ok_and(|age| age > STALE) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("device-crl.pem");
        let left = std::fs::File::create(folder.path().join(".device-crl.pem.x.tmp")).expect("create");
        left.set_modified(std::time::SystemTime::now() - 2 * STALE).expect("age it");
        publish(&path, "one").expect("first");
        publish(&path, "two").expect("second");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "two");
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
        let missing = publish(&folder.path().join("no/such/folder.pem"), "x").expect_err("no folder");
        assert!(missing.to_string().contains("no/such"), "{missing}");
    }

    #[test]
    fn a_file_that_cannot_be_replaced_keeps_what_it_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("crl");
        std::fs::create_dir_all(path.join("a folder in its place")).expect("create");
        publish(&path, "new").expect_err("a folder is not replaced");
        assert!(path.join("a folder in its place").exists());
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1, "nothing is left beside it");
    }
}
