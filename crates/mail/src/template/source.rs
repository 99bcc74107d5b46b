use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::CatalogueError;

include!(concat!(env!("OUT_DIR"), "/shipped_templates.rs"));

/// Larger than any sensible template; a folder that was named by mistake is not read into memory.
const FILE_LARGEST: u64 = 1024 * 1024;

/// The files of a catalogue by their path inside it, with forward slashes.
pub(super) type Files = BTreeMap<String, String>;

/// What comes with the service.
pub(super) fn shipped() -> Files {
    SHIPPED.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// What stands in `root`: `<template>/manifest.json`, `<template>/<locale>/*.j2` and `_layout/*.j2`. Files and folders whose
/// name begins with a dot are left out: editors and orchestrators put their own there.
pub(super) fn read(root: &Path) -> Result<Files, CatalogueError> {
    let mut files = Files::new();
    walk(root, "", &mut files, 0)?;
    Ok(files)
}

fn walk(directory: &Path, prefix: &str, files: &mut Files, depth: usize) -> Result<(), CatalogueError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CatalogueError::Read { path, source }
    };
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(failed(directory))?;
    entries.sort();
    for path in entries {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        // Follows links: a mounted ConfigMap consists of them.
        let metadata = fs::metadata(&path).map_err(failed(&path))?;
        if metadata.is_dir() && depth < 2 {
            walk(&path, &format!("{prefix}{name}/"), files, depth + 1)?;
        } else if metadata.is_file() && (name.ends_with(".j2") || name == "manifest.json") {
            if metadata.len() > FILE_LARGEST {
                let source = std::io::Error::other("the file is larger than 1 MiB");
                return Err(CatalogueError::Read { path, source });
            }
            let text = fs::read_to_string(&path).map_err(failed(&path))?;
            files.insert(format!("{prefix}{name}"), text);
        }
    }
    Ok(())
}
