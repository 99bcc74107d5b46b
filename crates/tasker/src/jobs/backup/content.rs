//! Counts and digests of a database's tables, as one session's snapshot sees them.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use voiceai_postgres::sqlx;

use super::error::BackupError;
use super::manifest::{Content, DatabaseFacts, RowHash, TableFacts};

/// Tables whose rows a dump carries: not the system's, not an extension's own, not temporary, not foreign. Of a partitioned
/// table each partition counts for itself. Materialised views are left out: a restore fills them anew. The columns come by
/// name: those of a table that inherits may be in another order after a restore.
const TABLES: &str = "
    SELECT n.nspname::text, c.relname::text, pg_catalog.format('%I.%I', n.nspname, c.relname),
           a.names, a.texts, a.nullables
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT COALESCE(array_agg(pg_catalog.format('t.%I', attname) ORDER BY attname::text COLLATE pg_catalog.\"C\"), '{}') AS names,
               COALESCE(array_agg(atttypid IN ('pg_catalog.text'::pg_catalog.regtype, 'pg_catalog.varchar'::pg_catalog.regtype)
                        ORDER BY attname::text COLLATE pg_catalog.\"C\"), '{}') AS texts,
               COALESCE(array_agg(NOT attnotnull ORDER BY attname::text COLLATE pg_catalog.\"C\"), '{}') AS nullables
        FROM pg_catalog.pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) a
    WHERE c.relkind = 'r' AND c.relpersistence <> 't'
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2";

const SCHEMAS: &str = "
    SELECT n.nspname::text FROM pg_catalog.pg_namespace n
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.objid = n.oid AND d.deptype = 'e')
    ORDER BY 1";

const DATABASE: &str = "
    SELECT d.datname::text, pg_catalog.current_setting('server_version'), pg_catalog.pg_encoding_to_char(d.encoding)::text,
           d.datcollate::text, d.datctype::text, pg_catalog.pg_database_size(d.oid)
    FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";

/// What [`RowHash::HashText`] makes of this text on a server where it may be used; on one of the other byte order, or of a
/// version that hashes in another way, it makes something else.
const HASHED: (&str, i64) =
    ("SELECT pg_catalog.hashtextextended('voiceai' COLLATE pg_catalog.\"C\", 0)", 6_948_195_086_651_930_766);

/// The best way of hashing rows that this server has. To be asked outside of a transaction, which an old server's refusal
/// would end.
pub(super) async fn row_hash(session: &mut PgConnection) -> RowHash {
    let (statement, usual) = HASHED;
    match sqlx::query_scalar::<_, i64>(statement).fetch_one(session).await {
        Ok(hashed) if hashed == usual => RowHash::HashText,
        // A session that is gone says so in the next statement.
        Ok(_) | Err(_) => RowHash::Md5,
    }
}

/// Whether this server hashes rows as those of a manifest were hashed.
pub(super) async fn is_comparable(session: &mut PgConnection, hash: RowHash) -> bool {
    hash == RowHash::Md5 || row_hash(session).await == hash
}

/// A table on the list.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    schema: String,
    name: String,
    quoted: String,
    columns: Vec<Column>,
}

/// A column of a table that is called `t`.
#[derive(Debug, Clone)]
struct Column {
    quoted: String,
    is_text: bool,
    is_nullable: bool,
}

/// More columns than this are hashed as one text: each takes a level of the server's stack.
const COLUMNS_MAX: usize = 100;

/// An expression for the 64 bits of a row of the table `t`.
///
/// Each column's text is hashed with the hash of those before it, so that it matters which values stand beside each other,
/// and NULL is not the empty text. `concat` gives the text of any value, as a dump has it.
fn row_expression(row_hash: RowHash, columns: &[Column]) -> String {
    let hashed = |text: &str, seed: &str| {
        format!("pg_catalog.hashtextextended({text} COLLATE pg_catalog.\"C\", {seed})")
    };
    match row_hash {
        // As it always was, for the manifests that there are; a column of the name t stands for the whole row here.
        RowHash::Md5 => {
            "('x' || pg_catalog.\"left\"(pg_catalog.md5(t::text), 16))::pg_catalog.bit(64)::pg_catalog.int8"
                .to_owned()
        }
        RowHash::HashText if columns.is_empty() || columns.len() > COLUMNS_MAX => {
            hashed("(t.*)::pg_catalog.text", "0")
        }
        RowHash::HashText => columns.iter().fold("0::pg_catalog.int8".to_owned(), |before, column| {
            let Column { quoted, is_text, is_nullable } = column;
            let text = match (is_text, is_nullable) {
                (true, false) => quoted.clone(),
                (true, true) => format!("COALESCE({quoted}, '')"),
                (false, _) => format!("pg_catalog.concat({quoted})"),
            };
            let seed = if *is_nullable {
                // Not IS NULL, which of a composite value is true when all of its fields are.
                format!("{before} # ({quoted} IS NOT DISTINCT FROM NULL)::pg_catalog.int4::pg_catalog.int8")
            } else {
                before
            };
            hashed(&text, &seed)
        }),
    }
}

/// The tables to be dumped: those of the schemas `only`, or all where it is empty.
pub(super) async fn tables(
    session: &mut PgConnection,
    place: &str,
    only: &[String],
) -> Result<Vec<Listed>, BackupError> {
    let rows = sqlx::query(TABLES)
        .fetch_all(session)
        .await
        .map_err(BackupError::database("list of tables", place))?;
    let listed = rows.iter().map(|row| Listed {
        schema: row.get(0),
        name: row.get(1),
        quoted: row.get(2),
        columns: columns(row),
    });
    Ok(listed.filter(|table| only.is_empty() || only.contains(&table.schema)).collect())
}

fn columns(row: &PgRow) -> Vec<Column> {
    let (names, texts, nullables): (Vec<String>, Vec<bool>, Vec<bool>) = (row.get(3), row.get(4), row.get(5));
    let all = names.into_iter().zip(texts).zip(nullables);
    all.map(|((quoted, is_text), is_nullable)| Column { quoted, is_text, is_nullable }).collect()
}

/// Keeps the tables as they are defined until the transaction ends: one that is dropped meanwhile would make dump and
/// count differ.
pub(super) async fn lock(
    session: &mut PgConnection,
    place: &str,
    tables: &[Listed],
) -> Result<(), BackupError> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = tables.iter().map(|table| format!("ONLY {}", table.quoted)).collect();
    // The names come quoted from the server itself.
    let statement = AssertSqlSafe(format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")));
    let locked = session.execute(sqlx::raw_sql(statement)).await;
    locked.map(|_| ()).map_err(BackupError::database("lock of the tables", place))
}

/// Counts everything, and digests it in this way.
pub(super) async fn content(
    session: &mut PgConnection,
    place: &str,
    tables: Vec<Listed>,
    only: &[String],
    row_hash: RowHash,
) -> Result<Content, BackupError> {
    let failed = || BackupError::database("count", place);
    let schemas = sqlx::query(SCHEMAS).fetch_all(&mut *session).await.map_err(failed())?;
    let objects = "SELECT count(*) FROM pg_catalog.pg_largeobject_metadata";
    let objects: i64 = sqlx::query_scalar(objects).fetch_one(&mut *session).await.map_err(failed())?;
    let mut schemas: Vec<String> = schemas.iter().map(|row| row.get(0)).collect();
    if !only.is_empty() {
        if let Some(schema) = only.iter().find(|schema| !schemas.contains(schema)) {
            return Err(BackupError::NoSchema { database: place.to_owned(), schema: schema.clone() });
        }
        schemas.retain(|schema| only.contains(schema));
    }
    let mut content = Content {
        schemas,
        row_hash,
        tables: Vec::with_capacity(tables.len()),
        // They belong to no schema, and so to no dump of some.
        large_objects: if only.is_empty() { objects.unsigned_abs() } else { 0 },
    };
    for table in tables {
        let (rows, digest) = match count_and_digest(session, &table, row_hash).await {
            Ok(both) => both,
            Err(error) if is_too_large(&error) => {
                tracing::warn!(schema = table.schema, table = table.name, %error, "a row is too large for a digest");
                (count(session, &table).await.map_err(failed())?, None)
            }
            Err(error) => return Err(failed()(error)),
        };
        content.tables.push(TableFacts { schema: table.schema, name: table.name, rows, digest });
    }
    Ok(content)
}

/// The digest is a sum, so that the order of rows, which a restore may change, does not matter; a row that is there twice
/// counts twice.
async fn count_and_digest(
    session: &mut PgConnection,
    table: &Listed,
    row_hash: RowHash,
) -> Result<(u64, Option<String>), sqlx::Error> {
    let hash = row_expression(row_hash, &table.columns);
    let statement = format!(
        "SELECT pg_catalog.count(*), COALESCE(pg_catalog.sum({hash}), 0)::text FROM ONLY {} t",
        table.quoted
    );
    // An error must not end the snapshot.
    session.execute("SAVEPOINT one_table").await?;
    match sqlx::query(AssertSqlSafe(statement)).fetch_one(&mut *session).await {
        Ok(row) => {
            session.execute("RELEASE SAVEPOINT one_table").await?;
            Ok((row.get::<i64, _>(0).unsigned_abs(), Some(row.get(1))))
        }
        Err(error) => {
            session.execute("ROLLBACK TO SAVEPOINT one_table").await?;
            Err(error)
        }
    }
}

async fn count(session: &mut PgConnection, table: &Listed) -> Result<u64, sqlx::Error> {
    let statement = format!("SELECT pg_catalog.count(*) FROM ONLY {}", table.quoted);
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(session).await?;
    Ok(rows.unsigned_abs())
}

/// A row's text may not pass one gigabyte; the server then says so in one of these ways.
fn is_too_large(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    matches!(code.as_deref(), Some("54000" | "53200" | "XX000"))
}

/// Facts of the session's database.
pub(super) async fn database_facts(
    session: &mut PgConnection,
    place: &str,
) -> Result<DatabaseFacts, BackupError> {
    let row =
        sqlx::query(DATABASE).fetch_one(session).await.map_err(BackupError::database("look at", place))?;
    let version: String = row.get(1);
    Ok(DatabaseFacts {
        name: row.get(0),
        server_version: version.split(' ').next().unwrap_or_default().to_owned(),
        encoding: row.get(2),
        collate: row.get(3),
        ctype: row.get(4),
        size_bytes: row.get::<i64, _>(5).unsigned_abs(),
    })
}

/// Begins a transaction that sees one moment and reads only, with everything that shapes a row's text fixed, and without
/// the time limits that a role or database may set: a dump takes as long as it takes, and is bounded from outside.
pub(super) async fn begin_snapshot(session: &mut PgConnection, place: &str) -> Result<(), BackupError> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;
        SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = '60s';
        SET LOCAL search_path = ''; SET LOCAL row_security = off; SET LOCAL DateStyle = ISO;
        SET LOCAL IntervalStyle = postgres; SET LOCAL TimeZone = 'UTC'; SET LOCAL extra_float_digits = 1;
        SET LOCAL bytea_output = hex; SET LOCAL xmlbinary = base64; SET LOCAL lc_monetary = 'C'";
    session.execute(sqlx::raw_sql(begin)).await.map(|_| ()).map_err(BackupError::database("snapshot", place))
}

/// Has the session's statements done by one process: what is counted beside a dump takes no other core from it, and no
/// workers from the database's own queries.
pub(super) async fn alone(session: &mut PgConnection, place: &str) -> Result<(), BackupError> {
    let set = session.execute("SET LOCAL max_parallel_workers_per_gather = 0").await;
    set.map(|_| ()).map_err(BackupError::database("snapshot", place))
}

/// The content of a database that nobody else writes to, to be compared with that of a manifest. On a server that hashes
/// rows in another way, without digests.
pub(super) async fn content_now(
    session: &mut PgConnection,
    place: &str,
    only: &[String],
    row_hash: RowHash,
) -> Result<Content, BackupError> {
    let comparable = is_comparable(session, row_hash).await;
    begin_snapshot(session, place).await?;
    let tables = tables(session, place, only).await?;
    let usable = if comparable { row_hash } else { RowHash::Md5 };
    let mut content = content(session, place, tables, only, usable).await?;
    session.execute("COMMIT").await.map_err(BackupError::database("count", place))?;
    if !comparable {
        tracing::warn!(
            database = place,
            "this server hashes text in another way: only counts can be compared"
        );
        content.tables.iter_mut().for_each(|table| table.digest = None);
    }
    Ok(content)
}
