//! A database beside the service's own that lives as long as a proof takes.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};
use voiceai_postgres::sqlx;

use super::address::Address;
use super::error::BackupError;
use super::manifest::DatabaseFacts;
use super::{BackupContext, random_digits};

/// Every scratch database's name begins so.
const NAME: &str = "voiceai_verify_";

/// A scratch database. [`Scratch::drop_it`] removes it; a process that is killed leaves it to the next proof.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) address: Address,
    /// Creates and drops.
    admin: PgConnection,
    /// Holds the lock that says the database is in use, in a transaction, for as long as this lives.
    guard: PgConnection,
    place: String,
}

impl Scratch {
    /// Makes an empty database with the character set and locale of the dumped one, where this server has them.
    pub(super) async fn create(ctx: &BackupContext, facts: &DatabaseFacts) -> Result<Self, BackupError> {
        let name = format!("{NAME}{}_{}", ctx.mark(), random_digits());
        let home = maintenance(&ctx.database).await?;
        let place = home.place().to_owned();
        let failed = |tried| BackupError::database(tried, &place);
        let mut admin = home.connect("voiceai-verify").await?;
        admin.execute("SET statement_timeout = 0").await.map_err(failed("session settings"))?;
        sweep(ctx, &mut admin).await;
        let guard = guard(&home, &name).await?;
        let like_original = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            identifier(&name),
            literal(&facts.encoding),
            literal(&facts.collate),
            literal(&facts.ctype)
        );
        let created = admin.execute(sqlx::raw_sql(AssertSqlSafe(like_original))).await;
        if let Err(error) = created {
            // A locale that this server does not have must not stand against a proof: only the order of text differs.
            let code =
                error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
            if !matches!(code.as_deref(), Some("42809" | "22023" | "22P02" | "0A000")) {
                return Err(failed("creation of a scratch database beside")(error));
            }
            let plain = format!("CREATE DATABASE {} TEMPLATE template0", identifier(&name));
            let created = admin.execute(sqlx::raw_sql(AssertSqlSafe(plain))).await;
            created.map_err(failed("creation of a scratch database beside"))?;
        }
        Ok(Self { address: ctx.database.with_database(&name), admin, guard, place })
    }

    /// Removes it, whoever is still connected.
    pub(super) async fn drop_it(mut self) -> Result<(), BackupError> {
        let removed = remove(&mut self.admin, self.address.database()).await;
        let _ = tokio::join!(self.admin.close(), self.guard.close());
        removed.map_err(BackupError::database("removal of a scratch database beside", &self.place))
    }
}

/// A database of the server from which another can be made: the service's own, and where that is lost, the server's.
async fn maintenance(database: &Address) -> Result<Address, BackupError> {
    let mut first = None;
    let others = ["postgres", "template1"].map(|name| database.with_database(name));
    for candidate in std::iter::once(database.clone()).chain(others) {
        match candidate.connect("voiceai-verify").await {
            Ok(session) => {
                let _ = session.close().await;
                return Ok(candidate);
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or(BackupError::Address { name: "DATABASE_URL" }))
}

/// Locks a name before its database exists, so that no sweep takes it for a leftover.
async fn guard(home: &Address, name: &str) -> Result<PgConnection, BackupError> {
    let failed = || BackupError::database("lock", home.place());
    let mut session = home.connect("voiceai-verify").await?;
    let begin = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
    session.execute(sqlx::raw_sql(begin)).await.map_err(failed())?;
    let lock = sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, 0))");
    lock.bind(name).execute(&mut session).await.map_err(failed())?;
    Ok(session)
}

/// Removes the scratch databases of proofs that were killed. A failure is told and no more: it must not stand against a
/// proof.
async fn sweep(ctx: &BackupContext, admin: &mut PgConnection) {
    let ours = format!("{NAME}{}_", ctx.mark());
    let names = sqlx::query(
        "SELECT datname::text FROM pg_catalog.pg_database WHERE pg_catalog.starts_with(datname::text, $1)",
    );
    let names = match names.bind(&ours).fetch_all(&mut *admin).await {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(%error, "leftover scratch databases could not be looked for");
            return;
        }
    };
    for row in names {
        let name: String = row.get(0);
        let free = sqlx::query_scalar::<_, bool>(
            "SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($1, 0))",
        );
        if !free.bind(&name).fetch_one(&mut *admin).await.unwrap_or(false) {
            continue;
        }
        match remove(admin, &name).await {
            Ok(()) => tracing::warn!(
                database = name,
                "removed the scratch database of a proof that was interrupted"
            ),
            Err(error) => {
                tracing::warn!(database = name, %error, "a leftover scratch database could not be removed");
            }
        }
    }
}

async fn remove(admin: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(name));
    admin.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.map(|_| ())
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string that is one in every setting of the server.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
