//! What an error of a backend means to an operator: exit code and remedy, the same for every command.

use std::error::Error;

use voiceai_cli::Failure;
use voiceai_leader::InstallationError;
use voiceai_postgres::{ConnectError, MigrateError, is_unavailable, sqlx};
use voiceai_redis::{RedisError, RedisErrorKind};

/// The error with its causes on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text.push_str(": ");
            text.push_str(&source_text);
        }
        cause = source.source();
    }
    text
}

/// A failed Redis call.
#[must_use]
pub fn redis(error: &RedisError) -> Failure {
    let text = chain(error);
    match error.kind() {
        RedisErrorKind::Denied => Failure::refused(
            "redis_denied",
            text,
            "Check the user and password in REDIS_URL, or REDIS_USERNAME and REDIS_PASSWORD.",
        ),
        RedisErrorKind::Other => {
            Failure::refused("redis_refused", text, "Change the server as the message says, then try again.")
        }
        RedisErrorKind::OutOfMemory => {
            Failure::failed("redis_out_of_memory", text, "Raise maxmemory, or let the queues drain.")
        }
        RedisErrorKind::WrongType | RedisErrorKind::BadReply | RedisErrorKind::NotLoaded => {
            Failure::failed("redis_answer", text, "Look at the key or library that the message names.")
        }
        _ => Failure::unreachable(
            "redis_unreachable",
            text,
            "Check REDIS_URL (or REDIS_HOST and REDIS_PORT), the server and the network.",
        ),
    }
}

/// A failed connection to PostgreSQL.
#[must_use]
pub fn postgres_connect(error: &ConnectError) -> Failure {
    let text = chain(error);
    match error {
        ConnectError::Unreachable { .. } => Failure::unreachable(
            "postgres_unreachable",
            text,
            "Check DATABASE_URL (or DATABASE_HOST and its kin), the server and the network.",
        ),
        ConnectError::Address | ConnectError::Refused { .. } => Failure::refused(
            "postgres_refused",
            text,
            "Check user, password and database name in DATABASE_URL.",
        ),
    }
}

/// A failed statement.
#[must_use]
pub fn database(error: &sqlx::Error) -> Failure {
    let text = format!("PostgreSQL: {}", chain(error));
    if is_unavailable(error) {
        return Failure::unreachable(
            "postgres_unreachable",
            text,
            "Check the server and the network, then try again.",
        );
    }
    let code = error.as_database_error().and_then(|db| db.code().map(std::borrow::Cow::into_owned));
    match code.as_deref() {
        // Undefined table, column or schema.
        Some("42P01" | "42703" | "3F000") => {
            Failure::refused("schema_missing", text, "Run the binary's `migrate` command once.")
        }
        Some("42501") => {
            Failure::refused("postgres_denied", text, "Grant the role of DATABASE_URL this right.")
        }
        _ => Failure::failed("postgres_failed", text, "Look at the database's log for the same moment."),
    }
}

/// A failed migration.
#[must_use]
pub fn migration(error: &MigrateError) -> Failure {
    let text = chain(error);
    match error {
        MigrateError::Database(source) if is_unavailable(source) => {
            Failure::unreachable("postgres_unreachable", text, "Check PostgreSQL, then start again.")
        }
        MigrateError::Locked(_) => Failure::unreachable(
            "migration_locked",
            text,
            "See pg_locks for the advisory lock's holder; end it, then start again.",
        ),
        MigrateError::NewerBreaking { .. } => Failure::refused(
            "schema_newer",
            text,
            "Start the version that made this migration, or a newer one.",
        ),
        MigrateError::MayNotCreateSchema(_) => Failure::refused(
            "schema_denied",
            text,
            "Let the database's owner create the schema, then start again.",
        ),
        _ => Failure::failed(
            "migration_failed",
            text,
            "Look at the database's log; nothing of the failed migration was kept.",
        ),
    }
}

/// The stores belong to another environment, or could not be asked.
#[must_use]
pub fn installation(error: &InstallationError) -> Failure {
    let text = chain(error);
    match error {
        InstallationError::Redis(source) => redis(source),
        InstallationError::Database(source) => database(source),
        _ => Failure::refused(
            "wrong_installation",
            text,
            "Check ENVIRONMENT, REDIS_URL and DATABASE_URL: environments share no store.",
        ),
    }
}
