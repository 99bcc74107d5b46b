//! One database address for both worlds: the driver's options and libpq's environment.

use std::str::FromStr as _;

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use voiceai_postgres::sqlx;
use voiceai_runtime::Secret;

use super::error::BackupError;

/// A database that `pg_dump`, `pg_restore` and the driver all reach in the same way.
#[derive(Clone)]
pub struct Address {
    options: PgConnectOptions,
    /// For libpq, which takes a password from nowhere else without showing it in the list of processes.
    environment: Vec<(&'static str, Secret)>,
    database: String,
    place: String,
}

impl std::fmt::Debug for Address {
    /// The driver's own options would show the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Address").field(&self.place).finish()
    }
}

/// Parameters of a URL's query and the variable by which libpq takes each.
const PARAMETERS: [(&str, &str); 17] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("sslmode", "PGSSLMODE"),
    ("ssl-mode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("ssl-root-cert", "PGSSLROOTCERT"),
    ("ssl-ca", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("options", "PGOPTIONS"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
];

impl Address {
    /// Reads a `postgres://` URL; `name` is the setting or argument for the error, which never shows the URL itself.
    ///
    /// What the URL leaves open is taken from this process's `PG…` variables, as libpq and the driver both do: so a
    /// password need not stand in an argument.
    ///
    /// # Errors
    /// [`BackupError::Address`].
    pub fn parse(name: &'static str, url: &Secret) -> Result<Self, BackupError> {
        let wrong = || BackupError::Address { name };
        let options = PgConnectOptions::from_str(url.expose()).map_err(|_| wrong())?;
        let parsed = url::Url::parse(url.expose()).map_err(|_| wrong())?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(wrong());
        }
        let mut environment: Vec<(&'static str, Secret)> = inherited();
        let mut set = |variable: &'static str, value: String| {
            environment.retain(|(known, _)| *known != variable);
            environment.push((variable, Secret::new(value)));
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let named: [(&'static str, Option<String>); 5] = [
            ("PGHOST", parsed.host_str().map(|host| host.trim_matches(['[', ']']).to_owned())),
            ("PGPORT", parsed.port().map(|port| port.to_string())),
            ("PGUSER", Some(parsed.username().to_owned())),
            ("PGPASSWORD", parsed.password().map(str::to_owned)),
            ("PGDATABASE", Some(parsed.path().trim_start_matches('/').to_owned())),
        ];
        for (variable, value) in named {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                set(variable, decoded(&value));
            }
        }
        for (key, value) in parsed.query_pairs() {
            if let Some((_, variable)) = PARAMETERS.iter().find(|(parameter, _)| *parameter == key) {
                set(variable, value.into_owned());
            }
        }
        let database = options.get_database().unwrap_or_else(|| options.get_username()).to_owned();
        let host = options.get_socket().map_or_else(
            || format!("{}:{}", options.get_host(), options.get_port()),
            |folder| folder.display().to_string(),
        );
        let place = format!("{host}/{database}");
        // Every statement would else be prepared first, which a pooler between sessions cannot do.
        let options = options.statement_cache_capacity(0).disable_statement_logging();
        Ok(Self { options, environment, database, place })
    }

    /// The same server's database `name`.
    pub(super) fn with_database(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.options = other.options.database(name);
        name.clone_into(&mut other.database);
        other.place =
            self.place.rsplit_once('/').map_or_else(|| name.to_owned(), |(host, _)| format!("{host}/{name}"));
        other
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Host and name, without user or password.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What libpq needs in its environment.
    pub(super) fn environment(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let others = self.environment.iter().filter(|(name, _)| *name != "PGDATABASE");
        others.map(|(name, value)| (*name, value.expose())).chain([("PGDATABASE", self.database.as_str())])
    }

    /// Opens a session of its own, known to the server as `purpose`.
    ///
    /// # Errors
    /// [`BackupError::Database`].
    pub(super) async fn connect(&self, purpose: &str) -> Result<PgConnection, BackupError> {
        let options = self.options.clone().application_name(purpose);
        let failed = BackupError::database("connection", &self.place);
        match tokio::time::timeout(CONNECT_MAX, PgConnection::connect_with(&options)).await {
            Ok(connected) => connected.map_err(failed),
            Err(_) => Err(failed(sqlx::Error::PoolTimedOut)),
        }
    }
}

const CONNECT_MAX: std::time::Duration = std::time::Duration::from_secs(15);

/// The `PG…` variables of this process that libpq would read.
fn inherited() -> Vec<(&'static str, Secret)> {
    let mut variables: Vec<(&'static str, Secret)> = Vec::new();
    for (_, variable) in PARAMETERS {
        if let Ok(value) = std::env::var(variable)
            && !variables.iter().any(|(known, _)| *known == variable)
        {
            variables.push((variable, Secret::new(value)));
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(url: &str) -> std::collections::BTreeMap<&'static str, String> {
        let address = Address::parse("DATABASE_URL", &Secret::new(url)).expect(url);
        address.environment().map(|(name, value)| (name, value.to_owned())).collect()
    }

    #[test]
    fn libpq_gets_what_the_driver_gets() {
        let found = environment(
            "postgres://ops:p%40ss%2Fw%3Ard@db.internal:6432/voice%20ai?sslmode=verify-full&sslrootcert=/ca.pem",
        );
        for (name, value) in [
            ("PGHOST", "db.internal"),
            ("PGPORT", "6432"),
            ("PGUSER", "ops"),
            ("PGPASSWORD", "p@ss/w:rd"),
            ("PGDATABASE", "voice ai"),
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", "/ca.pem"),
        ] {
            assert_eq!(found.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(environment("postgres://ops@%2Frun%2Fpostgresql/v")["PGHOST"], "/run/postgresql");
        assert_eq!(environment("postgres:///v?host=/run/pg&user=app")["PGUSER"], "app");
        assert_eq!(environment("postgres://ops@[::1]:5/v")["PGHOST"], "::1");
    }

    #[test]
    fn an_address_never_shows_its_password() {
        let address =
            Address::parse("DATABASE_URL", &Secret::new("postgres://u:s3cret-canary@h/d")).expect("sound");
        assert_eq!((address.place(), address.database()), ("h:5432/d", "d"));
        assert_eq!(address.with_database("x").place(), "h:5432/x");
        assert!(!format!("{address:?} {:?}", address.environment).contains("s3cret-canary"));
        let wrong =
            Address::parse("--into", &Secret::new("mysql://u:s3cret-canary@h/d")).expect_err("not ours");
        assert!(wrong.to_string().contains("--into") && !format!("{wrong:?}").contains("canary"));
    }
}
