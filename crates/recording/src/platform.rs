//! The platform's own tables, whose spelling differs from one installation to the next: looked up, read and written by the columns
//! that are there, never altered.

use uuid::Uuid;
use voiceai_postgres::sqlx::{self, Connection as _, PgConnection, Row};

use crate::error::RecordingError;
use crate::rows::Made;

/// Where calls are looked for.
pub(crate) const CALLS: [&str; 2] = ["Call", "calls"];
/// Where conversations are looked for.
pub(crate) const CONVERSATIONS: [&str; 2] = ["Conversation", "conversations"];
/// Where recordings are looked for.
const RECORDINGS: [&str; 2] = ["Recording", "recordings"];
/// A recording's object.
const KEYS: [&str; 8] = [
    "objectKey",
    "object_key",
    "s3Key",
    "s3_key",
    "storageKey",
    "storage_key",
    "recordingKey",
    "recording_key",
];

/// A column as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    name: String,
    pub(crate) quoted: String,
    /// As `format_type` says.
    type_name: String,
    /// Of an enum, in order.
    labels: Vec<String>,
}

impl Column {
    /// Whether it holds an instant.
    pub(crate) fn is_time(&self) -> bool {
        self.type_name.starts_with("timestamp")
    }

    /// A condition that this column of one table and `other` of another hold the same; by an index, where their types allow it.
    pub(crate) fn equals(&self, of: &str, other: &Self, of_other: &str) -> String {
        let cast = if self.type_name == other.type_name { "" } else { "::text" };
        format!("{of}.{}{cast} = {of_other}.{}{cast}", self.quoted, other.quoted)
    }

    fn has_zone(&self) -> bool {
        self.type_name.ends_with("with time zone")
    }

    /// Its value as an instant. One without a zone is in UTC, as Prisma writes it.
    pub(crate) fn instant(&self, of: &str) -> String {
        if self.has_zone() {
            format!("{of}.{}", self.quoted)
        } else {
            format!("({of}.{} AT TIME ZONE 'UTC')", self.quoted)
        }
    }

    /// A parameter that holds an instant, as this column takes it.
    pub(crate) fn of_instant(&self, parameter: &str) -> String {
        if self.has_zone() {
            format!("{parameter}::timestamptz")
        } else {
            format!("({parameter}::timestamptz AT TIME ZONE 'UTC')")
        }
    }

    /// A parameter that holds a text, as this column takes it.
    pub(crate) fn of_text(&self, parameter: &str) -> String {
        format!("{parameter}::text::{}", self.type_name)
    }

    /// Whether a text can be a value of this column: a comparison with one that cannot would be an error.
    pub(crate) fn takes(&self, text: &str) -> bool {
        match self.type_name.as_str() {
            "uuid" => Uuid::parse_str(text).is_ok(),
            "bigint" => text.parse::<i64>().is_ok(),
            "integer" => text.parse::<i32>().is_ok(),
            "smallint" => text.parse::<i16>().is_ok(),
            _ if self.labels.is_empty() => !text.contains('\0'),
            _ => self.labels.iter().any(|label| label == text),
        }
    }

    /// The first of `words` that an enum has, whatever its case; of any other column the first, in the case of `like`.
    pub(crate) fn word(&self, words: &[&str], like: &str) -> Option<String> {
        if !self.labels.is_empty() {
            let label = |word: &&str| self.labels.iter().find(|label| label.eq_ignore_ascii_case(word));
            return words.iter().find_map(label).cloned();
        }
        let upper = like.chars().any(char::is_uppercase) && !like.chars().any(char::is_lowercase);
        words.first().map(|word| if upper { word.to_ascii_uppercase() } else { (*word).to_owned() })
    }
}

/// A table as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// In quotes.
    pub(crate) name: String,
    columns: Vec<Column>,
}

impl Table {
    /// The first of `names` that there is, in the search path or the schema that the name gives.
    pub(crate) async fn first(
        connection: &mut PgConnection,
        names: &[&str],
    ) -> Result<Option<Self>, RecordingError> {
        let tried = "look for the platform's tables";
        let names: Vec<String> = names.iter().filter_map(|name| quoted(name)).collect();
        let rows = sqlx::query(
            "WITH found AS (
                SELECT name, to_regclass(name)::oid AS oid FROM unnest($1::text[]) WITH ORDINALITY AS c (name, n)
                WHERE to_regclass(name) IS NOT NULL ORDER BY n LIMIT 1)
             SELECT f.name, a.attname::text, quote_ident(a.attname), format_type(a.atttypid, NULL),
                    ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid ORDER BY e.enumsortorder)
             FROM found f JOIN pg_catalog.pg_attribute a ON a.attrelid = f.oid AND a.attnum > 0 AND NOT a.attisdropped
             ORDER BY a.attnum",
        )
        .bind(names)
        .fetch_all(connection)
        .await
        .map_err(RecordingError::database(tried))?;
        let Some(first) = rows.first() else { return Ok(None) };
        let name = first.try_get(0).map_err(RecordingError::database(tried))?;
        let column = |row: &sqlx::postgres::PgRow| -> Result<Column, sqlx::Error> {
            Ok(Column {
                name: row.try_get(1)?,
                quoted: row.try_get(2)?,
                type_name: row.try_get(3)?,
                labels: row.try_get(4)?,
            })
        };
        let columns: Result<_, _> = rows.iter().map(column).collect();
        Ok(Some(Self { name, columns: columns.map_err(RecordingError::database(tried))? }))
    }

    /// The first of these columns that there is.
    pub(crate) fn pick(&self, names: &[&str]) -> Option<&Column> {
        names.iter().find_map(|name| self.columns.iter().find(|column| column.name == *name))
    }
}

/// `table` or `schema.table`, each part in quotes; nothing for what is neither.
pub(crate) fn quoted(name: &str) -> Option<String> {
    let parts: Vec<_> = name.split('.').collect();
    let sound = |part: &&str| !part.is_empty() && part.len() < 64 && !part.contains(['\0', '"']);
    let one = |part: &&str| format!("\"{part}\"");
    (parts.len() <= 2 && parts.iter().all(sound)).then(|| parts.iter().map(one).collect::<Vec<_>>().join("."))
}

/// The object of the platform's recording with this id.
pub(crate) async fn recording_key(
    connection: &mut PgConnection,
    bucket: &str,
    id: &str,
) -> Result<String, RecordingError> {
    let unknown = |why: &str| RecordingError::Order(format!("recording_id {id:?} {why}; give its key"));
    let table = Table::first(connection, &RECORDINGS).await?;
    let table =
        table.ok_or_else(|| unknown("is no row of ops.recordings, and there is no table of recordings"))?;
    let (Some(own), Some(key)) = (table.pick(&["id"]), table.pick(&KEYS)) else {
        return Err(unknown("cannot be looked up: the table of recordings lacks id or key"));
    };
    if !own.takes(id) {
        return Err(unknown("is no id of the table of recordings"));
    }
    let statement = format!(
        "SELECT {}::text FROM {} WHERE {} = {}",
        key.quoted,
        table.name,
        own.quoted,
        own.of_text("$1")
    );
    let found: Option<Option<String>> = sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
        .bind(id)
        .fetch_optional(connection)
        .await
        .map_err(RecordingError::database("look up a recording of the platform's"))?;
    let address = found.flatten().ok_or_else(|| unknown("has no object in the table of recordings"))?;
    key_in(bucket, &address).ok_or_else(|| unknown("leads to another bucket"))
}

/// The keys of the recordings of a call or a conversation, as the platform's table of recordings has them.
pub(crate) async fn recording_keys(
    connection: &mut PgConnection,
    call: Option<&str>,
    conversation: Option<&str>,
) -> Result<Vec<String>, RecordingError> {
    let Some(table) = Table::first(connection, &RECORDINGS).await? else { return Ok(Vec::new()) };
    let Some(key) = table.pick(&KEYS) else { return Ok(Vec::new()) };
    let mut conditions = Vec::new();
    let by =
        [(["callId", "call_id"], call, "$1"), (["conversationId", "conversation_id"], conversation, "$2")];
    for (names, id, parameter) in by {
        if let (Some(column), Some(id)) = (table.pick(&names), id)
            && column.takes(id)
        {
            conditions.push(format!("{} = {}", column.quoted, column.of_text(parameter)));
        }
    }
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    // Both parameters are named whether used or not: their types must be known.
    let statement = format!(
        "SELECT {0}::text FROM {1} WHERE {0} IS NOT NULL AND ({2}) AND ($1::text IS NOT NULL OR $2::text IS NOT NULL) ORDER BY 1 LIMIT 100",
        key.quoted,
        table.name,
        conditions.join(" OR ")
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
        .bind(call)
        .bind(conversation)
        .fetch_all(connection)
        .await
        .map_err(RecordingError::database("look up the recordings of a call"))
}

/// Tells the platform's table of recordings, where there is one, what became of an object. Only columns that are there are written.
///
/// What the platform's table refuses, such as a word for a state that it does not know, is logged and left: the recording was made.
pub(crate) async fn note(
    connection: &mut PgConnection,
    key: &str,
    ended: Result<&Made, &str>,
) -> Result<(), RecordingError> {
    let tried = "tell the platform's table of a recording";
    let mut nested = connection.begin().await.map_err(RecordingError::database(tried))?;
    match write(&mut nested, key, ended).await {
        Ok(()) => nested.commit().await.map_err(RecordingError::database(tried)),
        Err(error) if error.is_refused() => {
            nested.rollback().await.map_err(RecordingError::database(tried))?;
            let error: &dyn std::error::Error = &error;
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            tracing::error!(key, reason, "the platform's table of recordings was not told");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn write(
    connection: &mut PgConnection,
    key: &str,
    ended: Result<&Made, &str>,
) -> Result<(), RecordingError> {
    let Some(table) = Table::first(connection, &RECORDINGS).await? else { return Ok(()) };
    let Some(own) = table.pick(&KEYS) else { return Ok(()) };
    let mut set = Vec::new();
    let words: &[&str] = match ended {
        Ok(_) => &["processed", "completed", "ready", "done"],
        Err(_) => &["failed", "error"],
    };
    let mut status = None;
    if let Some(column) = table.pick(&["status", "state"]) {
        status = column.word(words, "");
        if status.is_some() {
            set.push(format!("{} = {}", column.quoted, column.of_text("$2")));
        }
    }
    let (mut seconds, mut bytes, mut sha256, mut error) = (None, None, None, None);
    match ended {
        Ok(made) => {
            if let Some(column) = table.pick(&["durationSeconds", "duration_seconds"]) {
                set.push(format!("{} = $3::float8::{}", column.quoted, column.type_name));
                seconds = Some(made.seconds);
            }
            if let Some(column) = table.pick(&["sizeBytes", "size_bytes"]) {
                set.push(format!("{} = $4::bigint::{}", column.quoted, column.type_name));
                bytes = i64::try_from(made.processed_bytes).ok();
            }
            if let Some(column) = table.pick(&["checksumSha256", "checksum_sha256"]) {
                set.push(format!("{} = {}", column.quoted, column.of_text("$5")));
                sha256 = Some(made.processed_sha256.as_str());
            }
            if let Some(column) =
                table.pick(&["processedAt", "processed_at"]).filter(|column| column.is_time())
            {
                set.push(format!("{} = {}", column.quoted, column.of_instant("now()")));
            }
            if let Some(column) = table.pick(&["error"]) {
                set.push(format!("{} = NULL", column.quoted));
            }
        }
        Err(why) => {
            if let Some(column) = table.pick(&["error"]) {
                set.push(format!("{} = {}", column.quoted, column.of_text("$6")));
                error = Some(why);
            }
        }
    }
    if let Some(column) = table.pick(&["updatedAt", "updated_at"]).filter(|column| column.is_time()) {
        set.push(format!("{} = {}", column.quoted, column.of_instant("now()")));
    }
    if set.is_empty() {
        return Ok(());
    }
    let statement = format!(
        "WITH given AS (SELECT $2::text, $3::float8, $4::bigint, $5::text, $6::text) \
         UPDATE {} SET {} WHERE {} = {}",
        table.name,
        set.join(", "),
        own.quoted,
        own.of_text("$1")
    );
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(key)
        .bind(status)
        .bind(seconds)
        .bind(bytes)
        .bind(sha256)
        .bind(error)
        .execute(connection)
        .await
        .map(drop)
        .map_err(RecordingError::database("tell the platform's table of a recording"))
}

/// The key in `bucket` of what the platform wrote: a key, or an address of `s3://` or `https://`; nothing where that is elsewhere.
pub(crate) fn key_in(bucket: &str, address: &str) -> Option<String> {
    let Some((scheme, rest)) = address.split_once("://") else {
        return Some(address.trim_start_matches('/').to_owned()).filter(|key| !key.is_empty());
    };
    let (host, path) = rest.split_once('/')?;
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let key = match scheme {
        "s3" if host == bucket => path,
        "https" | "http" if host.split('.').next() == Some(bucket) && host.contains(".s3") => path,
        "https" | "http" => path.strip_prefix(bucket)?.strip_prefix('/')?,
        _ => return None,
    };
    (!key.is_empty()).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_as_they_are_spelled() {
        assert_eq!(quoted("Conversation").as_deref(), Some("\"Conversation\""));
        assert_eq!(quoted("app.calls").as_deref(), Some("\"app\".\"calls\""));
        for bad in ["", ".", "a.", "a.b.c", "a\"b", "a\0"] {
            assert_eq!(quoted(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_address_leads_into_this_bucket_or_nowhere() {
        let key = |address: &str| key_in("recordings", address);
        for (address, expected) in [
            ("calls/1.wav", Some("calls/1.wav")),
            ("/calls/1.wav", Some("calls/1.wav")),
            ("s3://recordings/calls/1.wav", Some("calls/1.wav")),
            (
                "https://recordings.s3.eu-central-1.amazonaws.com/calls/1.wav?X-Amz-Date=1",
                Some("calls/1.wav"),
            ),
            ("https://s3.example.com/recordings/calls/1.wav", Some("calls/1.wav")),
            ("s3://others/calls/1.wav", None),
            ("https://evil.example/calls/1.wav", None),
            ("file:///etc/passwd", None),
            ("s3://recordings/", None),
            ("", None),
        ] {
            assert_eq!(key(address).as_deref(), expected, "{address}");
        }
    }

    #[test]
    fn a_word_is_an_enums_own_or_in_the_case_of_the_others() {
        let column = |labels: &[&str]| Column {
            name: "status".into(),
            quoted: "status".into(),
            type_name: "text".into(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        };
        let words = ["completed", "ended"];
        assert_eq!(column(&[]).word(&words, "active").as_deref(), Some("completed"));
        assert_eq!(column(&[]).word(&words, "IN_PROGRESS").as_deref(), Some("COMPLETED"));
        assert_eq!(column(&["OPEN", "Ended"]).word(&words, "OPEN").as_deref(), Some("Ended"));
        assert_eq!(column(&["OPEN"]).word(&words, "OPEN"), None);
    }
}
