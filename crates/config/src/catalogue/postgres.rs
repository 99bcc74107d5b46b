//! PostgreSQL: the platform's tables and our own.

use std::time::Duration;

use voiceai_runtime::Secret;

use crate::compose;
use crate::setting::settings;
use crate::value::choices;
use crate::value::kinds::{choice, duration, integer, port, secret, secret_url, text};

/// How a connection to PostgreSQL is secured; the words of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server has it.
    Prefer,
    /// TLS, whoever answers.
    Require,
    /// TLS with a certificate of a known authority.
    VerifyCa,
    /// TLS with a certificate of a known authority for this host name.
    VerifyFull,
}

choices!(SslMode {
    Disable = "disable",
    Prefer = "prefer",
    Require = "require",
    VerifyCa = "verify-ca",
    VerifyFull = "verify-full",
});

settings! {
    "PostgreSQL", "One address: `DATABASE_URL`, or the parts. The URL wins over its parts.";

    /// Address with user and password: `postgres://user:password@host:port/database`, with libpq's `sslmode` and the like in its query.
    DATABASE_URL: Secret = secret_url().required().aliases(&["MAIL_POSTGRES_PRIMARY_DSN"])
        .composed(compose::DATABASE_URL).check("a postgres:// or postgresql:// URL", is_postgres);
    /// Host, or the folder of a Unix socket, when there is no `DATABASE_URL`.
    DATABASE_HOST: String = text().aliases(&["PG_HOST"]);
    /// Port beside `DATABASE_HOST`.
    DATABASE_PORT: u16 = port().default("5432").aliases(&["PG_PORT"]);
    /// User beside `DATABASE_HOST`.
    DATABASE_USERNAME: String = text().aliases(&["PG_USER"]).external("DATABASE_SECRET_ARN", "username");
    /// Password beside `DATABASE_HOST`.
    DATABASE_PASSWORD: Secret = secret().aliases(&["PG_PASS"]).external("DATABASE_SECRET_ARN", "password");
    /// Name or ARN of a secret outside `<NAMESPACE>/ops/` that holds user and password as JSON, such as the one that a managed database keeps for itself. Read where `NAMESPACE` is set, and above every other layer.
    DATABASE_SECRET_ARN: String = text();
    /// Database beside `DATABASE_HOST`.
    DATABASE_NAME: String = text().aliases(&["PG_DB"]);
    /// Security of the connection beside `DATABASE_HOST`; unset leaves libpq's `prefer`. Only `verify-full` proves who answers.
    DATABASE_SSLMODE: SslMode = choice();
    /// Most connections of one process.
    DATABASE_POOL_MAX: u32 = integer().default("10").aliases(&["PG_POOL_MAX"]).between(2, 1_000);
    /// Longest run of one statement.
    DATABASE_STATEMENT_TIMEOUT: Duration = duration().default("8s").between(100, 600_000);
}

pub(super) fn is_postgres(raw: &str) -> bool {
    ["postgres://", "postgresql://"].iter().any(|scheme| raw.len() > scheme.len() && raw.starts_with(scheme))
}
