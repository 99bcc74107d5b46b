//! What the bucket holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::task::JoinSet;
use voiceai_aws::Object;

use super::BackupContext;
use super::error::BackupError;
use super::manifest::{Keys, Manifest, Proof, folder, is_manifest};

/// Longest manifest that is read: one of some 50,000 tables.
const MANIFEST_MAX: usize = 16 * 1024 * 1024;
/// Manifests read at the same time.
const READING_MAX: usize = 8;

/// One backup as the bucket shows it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its keys.
    pub keys: Keys,
    /// The manifest, or why it cannot be used.
    pub manifest: Result<Manifest, String>,
    /// The last attempt to prove it.
    pub proof: Option<Proof>,
    /// What can be seen to be wrong without reading the dump: missing, or of another length than the manifest says.
    pub problem: Option<String>,
}

/// A page of backups.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Newest first.
    pub backups: Vec<Entry>,
    /// Where the next page begins; nothing at the end.
    pub next: Option<String>,
}

/// The backups under the prefix, newest first, at most `limit`, going on after `cursor` ([`Listing::next`]).
///
/// A dump without a manifest is none. Reads the bucket alone.
///
/// # Errors
/// [`BackupError::Store`].
pub async fn list(ctx: &BackupContext, limit: usize, cursor: Option<&str>) -> Result<Listing, BackupError> {
    let objects = ctx.store.list(&folder(&ctx.prefix)).await?;
    let mut names: Vec<&str> =
        objects.iter().map(|object| object.key.as_str()).filter(|key| is_manifest(key)).collect();
    names.sort_unstable_by(|one, other| other.cmp(one));
    let mut after: Vec<&str> =
        names.into_iter().filter(|key| cursor.is_none_or(|cursor| *key < cursor)).collect();
    let more = after.len() > limit;
    after.truncate(limit);
    let next = if more { after.last().map(|key| (*key).to_owned()) } else { None };
    let page: Vec<Keys> = after.into_iter().filter_map(Keys::of).collect();
    Ok(Listing { backups: read(ctx, page, &objects).await?, next })
}

/// Reads manifests and proofs, several at a time, and keeps their order.
async fn read(ctx: &BackupContext, page: Vec<Keys>, objects: &[Object]) -> Result<Vec<Entry>, BackupError> {
    let present: Arc<BTreeMap<String, u64>> =
        Arc::new(objects.iter().map(|object| (object.key.clone(), object.size)).collect());
    let mut reading = JoinSet::new();
    let mut entries = BTreeMap::new();
    for (position, keys) in page.into_iter().enumerate() {
        if reading.len() >= READING_MAX {
            collect(&mut entries, reading.join_next().await)?;
        }
        let (ctx, present) = (ctx.clone(), Arc::clone(&present));
        reading.spawn(async move { (position, entry(&ctx, keys, &present).await) });
    }
    while let Some(read) = reading.join_next().await {
        collect(&mut entries, Some(read))?;
    }
    Ok(entries.into_values().collect())
}

type Read = Result<(usize, Result<Entry, BackupError>), tokio::task::JoinError>;

fn collect(entries: &mut BTreeMap<usize, Entry>, read: Option<Read>) -> Result<(), BackupError> {
    // A reader that panicked has been logged; its row is left out.
    if let Some(Ok((position, entry))) = read {
        entries.insert(position, entry?);
    }
    Ok(())
}

async fn entry(
    ctx: &BackupContext,
    keys: Keys,
    present: &BTreeMap<String, u64>,
) -> Result<Entry, BackupError> {
    let manifest = Manifest::parse(&ctx.store.get_small(&keys.manifest(), MANIFEST_MAX).await?);
    let proof = if present.contains_key(&keys.proof()) {
        let bytes = ctx.store.get_small(&keys.proof(), MANIFEST_MAX).await?;
        serde_json::from_slice(&bytes).ok()
    } else {
        None
    };
    let problem = match (&manifest, present.get(&keys.dump())) {
        (_, None) => Some("the dump is missing".to_owned()),
        (Ok(manifest), Some(size)) if *size != manifest.bytes => {
            Some(format!("the dump has {size} bytes instead of {}", manifest.bytes))
        }
        _ => None,
    };
    Ok(Entry { keys, manifest, proof, problem })
}

/// One backup by its id or the beginning of it; `latest` is the newest of this environment's own database.
///
/// # Errors
/// [`BackupError::NotFound`], [`BackupError::Manifest`], or the store's.
pub async fn find(ctx: &BackupContext, id: &str) -> Result<(Keys, Manifest), BackupError> {
    let objects = ctx.store.list(&folder(&ctx.prefix)).await?;
    let manifests = objects.iter().filter(|object| is_manifest(&object.key));
    let mut all: Vec<(&str, Keys)> =
        manifests.filter_map(|object| Some((object.key.as_str(), Keys::of(&object.key)?))).collect();
    all.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
    let mark = ctx.mark();
    let wanted =
        |keys: &Keys| if id == "latest" { keys.id().starts_with(&mark) } else { keys.id().starts_with(id) };
    let mut matching = all.into_iter().map(|(_, keys)| keys).filter(wanted);
    let not_found = || BackupError::NotFound { id: id.to_owned(), place: ctx.place() };
    let keys = matching.next().filter(|_| id.len() >= 4).ok_or_else(not_found)?;
    let others: BTreeSet<String> = matching.map(|keys| keys.id().to_owned()).collect();
    if id != "latest" && keys.id() != id && !others.is_empty() {
        let place = format!("{} (several begin so: {})", ctx.place(), keys.id());
        return Err(BackupError::NotFound { id: id.to_owned(), place });
    }
    let bytes = ctx.store.get_small(&keys.manifest(), MANIFEST_MAX).await?;
    let manifest =
        Manifest::parse(&bytes).map_err(|problem| BackupError::Manifest { key: keys.manifest(), problem })?;
    if manifest.key != keys.dump() || manifest.id != keys.id() {
        let problem = format!("speaks of {}", manifest.key);
        return Err(BackupError::Manifest { key: keys.manifest(), problem });
    }
    Ok((keys, manifest))
}

/// Every backup of this series.
pub(super) async fn series(ctx: &BackupContext) -> Result<Vec<Entry>, BackupError> {
    let objects = ctx.store.list(&folder(&ctx.prefix)).await?;
    let mark = ctx.mark();
    let manifests = objects.iter().map(|object| object.key.as_str()).filter(|key| is_manifest(key));
    let ours = manifests.filter_map(Keys::of).filter(|keys| keys.id().starts_with(&mark)).collect();
    read(ctx, ours, &objects).await
}

/// The backup that this very request has already taken, among the newest of this database.
pub(super) async fn taken_for(ctx: &BackupContext, request: &str) -> Result<Option<Entry>, BackupError> {
    const LOOKED_AT: usize = 20;
    let newest = list(ctx, LOOKED_AT, None).await?.backups;
    let same = |entry: &Entry| {
        entry.manifest.as_ref().is_ok_and(|manifest| manifest.request.as_deref() == Some(request))
    };
    Ok(newest.into_iter().find(|entry| entry.problem.is_none() && same(entry)))
}
