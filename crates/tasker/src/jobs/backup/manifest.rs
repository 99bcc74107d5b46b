//! The manifest: the commit mark of a backup, and everything a proof compares with.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The first layout of a manifest. One newer than all of these is refused rather than misread.
pub(super) const FORMAT: u32 = 1;
/// The layout of a manifest whose dump is encrypted or of some schemas alone: a version that does not know of either refuses it.
const FORMAT_SPECIAL: u32 = 2;
/// The layout of one whose digests are not sums of MD5: a version that compares them with such sums refuses it.
const FORMAT_HASHED: u32 = 3;

/// Written last, beside the dump: only a dump with a manifest is a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this document: 3; where digests are sums of MD5 2 of a dump that is encrypted or of some schemas alone, else 1.
    pub format: u32,
    /// The backup's name: 14 hexadecimal digits.
    pub id: String,
    /// The dump's key.
    pub key: String,
    /// `ENVIRONMENT` of the service that took it.
    pub environment: String,
    /// `INSTANCE_ID` of the process that took it.
    pub instance: String,
    /// The job that asked for it: the same job run twice takes one backup.
    pub request: Option<String>,
    /// The database that was dumped.
    pub database: DatabaseFacts,
    /// The name of the further database it is of; absent for the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The only schemas it holds; empty for the whole database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only_schemas: Vec<String>,
    /// How the dump is compressed, as `BACKUP_COMPRESSION` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// How the dump is encrypted; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Version of `pg_dump`, such as `15.18`.
    pub client_version: String,
    /// When the snapshot was taken: the moment the data are from.
    pub snapshot_at: Timestamp,
    /// When the work began.
    pub started_at: Timestamp,
    /// When the dump was stored and read back.
    pub finished_at: Timestamp,
    /// Length of the dump.
    pub bytes: u64,
    /// SHA-256 of the dump, lower-case hexadecimal.
    pub sha256: String,
    /// Parts it was sent in.
    pub parts: usize,
    /// What the dump holds, as of the snapshot.
    pub content: Content,
}

/// To whom a dump is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// `age`.
    pub method: String,
    /// The public keys.
    pub recipients: Vec<String>,
}

/// Facts of the dumped database that a restore may need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Its name.
    pub name: String,
    /// The server's version, such as `15.18`.
    pub server_version: String,
    /// Character set, such as `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// Size on the server's disk, in bytes.
    pub size_bytes: u64,
}

/// What a database holds, counted in one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Schemas that are not the system's, in order.
    pub schemas: Vec<String>,
    /// How the digests were made.
    #[serde(default, skip_serializing_if = "RowHash::is_first")]
    pub row_hash: RowHash,
    /// Every table with rows of its own, by schema and name.
    pub tables: Vec<TableFacts>,
    /// Number of large objects.
    pub large_objects: u64,
}

/// How a row becomes the 64 bits that are summed up in a table's digest. In both ways text is hashed, and the same row gives
/// the same bits on every server that has the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowHash {
    /// The first half of the MD5 of the row's text: every server has it.
    #[default]
    Md5,
    /// PostgreSQL's `hashtextextended`, on which its hash partitions stand, of one column's text after another: a third of
    /// the work. Servers from version 11 on little-endian machines have it.
    HashText,
}

impl RowHash {
    /// What older manifests do not name.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_first(&self) -> bool {
        *self == Self::Md5
    }
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFacts {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Number of rows.
    pub rows: u64,
    /// A sum over every row's hash that does not depend on their order; nothing when a row is too large to be hashed.
    pub digest: Option<String>,
}

impl Content {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// How `restored` differs, a line each; empty when it is the same. A digest missing on one side is not compared.
    pub fn differences(&self, restored: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let by_name = |content: &Self| -> BTreeMap<(String, String), TableFacts> {
            content
                .tables
                .iter()
                .map(|table| ((table.schema.clone(), table.name.clone()), table.clone()))
                .collect()
        };
        let (expected, found) = (by_name(self), by_name(restored));
        for ((schema, name), table) in &expected {
            match found.get(&(schema.clone(), name.clone())) {
                None => differences.push(format!("table {schema}.{name} is missing")),
                Some(other) if other.rows != table.rows => {
                    differences.push(format!(
                        "table {schema}.{name} has {} rows instead of {}",
                        other.rows, table.rows
                    ));
                }
                Some(other) => {
                    if let (Some(one), Some(two)) = (&table.digest, &other.digest)
                        && one != two
                    {
                        differences.push(format!("table {schema}.{name} has other content"));
                    }
                }
            }
        }
        let more = found.keys().filter(|name| !expected.contains_key(*name));
        differences.extend(more.map(|(schema, name)| format!("table {schema}.{name} should not exist")));
        for schema in self.schemas.iter().filter(|schema| !restored.schemas.contains(schema)) {
            differences.push(format!("schema {schema} is missing"));
        }
        if self.large_objects != restored.large_objects {
            let (found, expected) = (restored.large_objects, self.large_objects);
            differences.push(format!("{found} large objects instead of {expected}"));
        }
        differences
    }
}

/// What became of the last attempt to prove a backup; stored beside it, so that the bucket alone tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The backup.
    pub id: String,
    /// `true`: it was restored and every count and digest agreed.
    pub proved: bool,
    /// When.
    pub at: Timestamp,
    /// `INSTANCE_ID` of the process that tried.
    pub instance: String,
    /// Time from the first byte read to the last table compared: the least that a real restore takes.
    pub duration_ms: u64,
    /// Version of the server it was restored on.
    pub server_version: String,
    /// Tables compared.
    pub tables: usize,
    /// Rows compared.
    pub rows: u64,
    /// What was wrong; empty when proved.
    pub problems: Vec<String>,
}

impl Manifest {
    /// The layout for a dump like this.
    pub(super) const fn format_of(encrypted: bool, partial: bool, row_hash: RowHash) -> u32 {
        match row_hash {
            RowHash::HashText => FORMAT_HASHED,
            RowHash::Md5 if encrypted || partial => FORMAT_SPECIAL,
            RowHash::Md5 => FORMAT,
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } =
            serde_json::from_slice(bytes).map_err(|error| format!("not a manifest ({error})"))?;
        if !(FORMAT..=FORMAT_HASHED).contains(&format) {
            return Err(format!(
                "has format {format}, and this version reads formats {FORMAT} to {FORMAT_HASHED}"
            ));
        }
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

/// The keys of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    stem: String,
    id: String,
}

const DUMP: &str = ".dump";
const MANIFEST: &str = ".manifest.json";
const PROOF: &str = ".proof.json";

impl Keys {
    /// `<prefix>/<20261122T170000Z>-<database>-<id>`: sorts by time, and says what it is to a person.
    pub fn new(prefix: &str, at: Timestamp, database: &str, id: &str) -> Self {
        let time = at.strftime("%Y%m%dT%H%M%SZ");
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '_' };
        let database: String = database.chars().take(63).map(plain).collect();
        Self { stem: format!("{}{time}-{database}-{id}", folder(prefix)), id: id.to_owned() }
    }

    /// Reads any of a backup's keys; nothing for a key of another shape.
    pub fn of(key: &str) -> Option<Self> {
        let stem = [DUMP, MANIFEST, PROOF].iter().find_map(|ending| key.strip_suffix(ending))?;
        let name = stem.rsplit('/').next()?;
        let (time, rest) = name.split_once('-')?;
        let (_database, id) = rest.rsplit_once('-')?;
        let timely = time.len() == 16 && time.ends_with('Z') && time.as_bytes().get(8) == Some(&b'T');
        let named = id.len() == 14 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (timely && named).then(|| Self { stem: stem.to_owned(), id: id.to_owned() })
    }

    /// The backup's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The dump.
    pub fn dump(&self) -> String {
        format!("{}{DUMP}", self.stem)
    }

    /// The manifest.
    pub fn manifest(&self) -> String {
        format!("{}{MANIFEST}", self.stem)
    }

    /// The proof.
    pub fn proof(&self) -> String {
        format!("{}{PROOF}", self.stem)
    }
}

/// The prefix as it begins a key.
pub(super) fn folder(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

/// True for the key of a dump.
pub(super) fn is_dump(key: &str) -> bool {
    key.ends_with(DUMP) && Keys::of(key).is_some()
}

/// True for the key of a proof.
pub(super) fn is_proof(key: &str) -> bool {
    key.ends_with(PROOF) && Keys::of(key).is_some()
}

/// True for the key of a manifest.
pub(super) fn is_manifest(key: &str) -> bool {
    key.ends_with(MANIFEST) && Keys::of(key).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_time_and_are_read_back() {
        let at: Timestamp = "2026-11-22T17:00:01.9Z".parse().expect("a time");
        let keys = Keys::new("database-dumps", at, "voice ai/prod-1", "0123456789abcd");
        assert_eq!(keys.dump(), "database-dumps/20261122T170001Z-voice_ai_prod_1-0123456789abcd.dump");
        assert_eq!(
            keys.manifest(),
            "database-dumps/20261122T170001Z-voice_ai_prod_1-0123456789abcd.manifest.json"
        );
        for key in [keys.dump(), keys.manifest(), keys.proof()] {
            assert_eq!(Keys::of(&key), Some(keys.clone()), "{key}");
        }
        assert!(is_dump(&keys.dump()) && is_manifest(&keys.manifest()) && !is_dump(&keys.proof()));
        assert_eq!(Keys::new("", at, "v", "0123456789abcd").dump(), "20261122T170001Z-v-0123456789abcd.dump");
        for foreign in
            ["database-dumps/readme.txt", "a.dump", "20261122T170001Z-v-XYZ.dump", "x-v-0123456789abcd.dump"]
        {
            assert_eq!(Keys::of(foreign), None, "{foreign}");
        }
    }

    fn table(name: &str, rows: u64, digest: Option<&str>) -> TableFacts {
        let digest = digest.map(str::to_owned);
        TableFacts { schema: "public".to_owned(), name: name.to_owned(), rows, digest }
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let content = |tables: Vec<TableFacts>| Content {
            schemas: vec!["ops".to_owned()],
            row_hash: RowHash::HashText,
            tables,
            large_objects: 1,
        };
        let expected =
            content(vec![table("a", 2, Some("x")), table("b", 3, Some("y")), table("c", 1, Some("z"))]);
        assert_eq!(expected.differences(&expected), Vec::<String>::new());
        let mut restored =
            content(vec![table("a", 1, Some("x")), table("b", 3, Some("q")), table("d", 0, None)]);
        restored.schemas.clear();
        restored.large_objects = 0;
        assert_eq!(
            expected.differences(&restored),
            [
                "table public.a has 1 rows instead of 2",
                "table public.b has other content",
                "table public.c is missing",
                "table public.d should not exist",
                "schema ops is missing",
                "0 large objects instead of 1",
            ]
        );
        let unhashed = content(vec![table("a", 2, None), table("b", 3, Some("y")), table("c", 1, Some("z"))]);
        assert_eq!(expected.differences(&unhashed), Vec::<String>::new());
    }

    #[test]
    fn a_content_that_names_no_hash_has_sums_of_md5_and_writes_none() {
        let old: Content =
            serde_json::from_str(r#"{"schemas":[],"tables":[],"large_objects":0}"#).expect("old");
        assert_eq!(old.row_hash, RowHash::Md5);
        let text = |content: &Content| serde_json::to_string(content).expect("text");
        assert!(!text(&old).contains("row_hash"), "{}", text(&old));
        let new = Content { row_hash: RowHash::HashText, ..old };
        assert!(text(&new).contains(r#""row_hash":"hashtext""#), "{}", text(&new));
        let format = |hash| (Manifest::format_of(false, false, hash), Manifest::format_of(true, false, hash));
        assert_eq!((format(RowHash::Md5), format(RowHash::HashText)), ((1, 2), (3, 3)));
    }

    #[test]
    fn a_manifest_of_another_format_is_refused_by_name() {
        assert!(Manifest::parse(br#"{"format":4,"id":"x"}"#).expect_err("newer").contains("format 4"));
        assert!(Manifest::parse(b"{}").is_err() && Manifest::parse(b"<html>").is_err());
    }
}
