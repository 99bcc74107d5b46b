//! One environment: a Redis and a PostgreSQL that belong together.
//!
//! The first start writes `voiceai:installation` into Redis and a row into PostgreSQL, both with the environment and an
//! id made then. Every later start compares:
//!
//! | Redis key | row | what it means | what happens |
//! |---|---|---|---|
//! | none | none | the first start | both are written |
//! | none | ours | Redis was emptied, replaced or restored from before the first start | the key is written again |
//! | ours | none | the database was made anew, or restored from before the first start | the row adopts the key's id; a leader's terms go on above those seen in Redis, and it starts held |
//! | ours | the same | the usual case | |
//! | another environment in either | | one of the two addresses, or ENVIRONMENT, is wrong | refused |
//! | ours | ours, another id | the two stores are from two installations | refused |
//! | no installation record | | somebody else's key | refused, never overwritten |
//!
//! The row is claimed before the key, so of several first starts with one database one wins; of several with one Redis
//! and different databases one wins the key and the others are refused. An empty store of another environment cannot be
//! told from an empty one of ours: what protects it is that its first own process writes it down.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use voiceai_postgres::installation::{self, Installation};
use voiceai_postgres::{PgPool, sqlx};
use voiceai_redis::{Redis, RedisError, RedisErrorKind};

/// The Redis key that says which environment a Redis belongs to.
pub const INSTALLATION_KEY: &str = "voiceai:installation";

/// This process and its stores do not belong together, or it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// A store belongs to another environment.
    #[error(
        "ENVIRONMENT is `{ours}`, but the {store} belongs to environment `{theirs}` (installation {installation_id}): \
         correct ENVIRONMENT or the address of the {store}"
    )]
    Environment {
        /// `Redis` or `PostgreSQL database`.
        store: &'static str,
        /// ENVIRONMENT of this process.
        ours: String,
        /// What the store says.
        theirs: String,
        /// What the store says.
        installation_id: Uuid,
    },
    /// The stores belong to two installations.
    #[error(
        "Redis belongs to installation {redis} of environment `{environment}`, the PostgreSQL database to installation \
         {database}: correct REDIS_URL or DATABASE_URL. If the Redis shall serve this database from now on, stop every \
         process of both and run `DEL voiceai:installation`"
    )]
    Ids {
        /// ENVIRONMENT of this process and of both stores.
        environment: String,
        /// The id in Redis.
        redis: Uuid,
        /// The id in PostgreSQL.
        database: Uuid,
    },
    /// The key holds something else.
    #[error(
        "the Redis key `voiceai:installation` holds no installation record ({0}): if nothing else uses it, remove it with \
         `DEL voiceai:installation`"
    )]
    NotARecord(String),
    /// Redis could not be asked.
    #[error("read the installation from Redis")]
    Redis(#[from] RedisError),
    /// PostgreSQL could not be asked.
    #[error("read the installation from PostgreSQL")]
    Database(#[from] sqlx::Error),
}

impl InstallationError {
    /// True when a store went away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Redis(source) => source.is_unavailable(),
            Self::Database(source) => voiceai_postgres::is_unavailable(source),
            _ => false,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    environment: String,
    installation_id: Uuid,
}

/// Checks that this process, its Redis and its database are of one installation, and writes down what is missing (see
/// the table of this module). The database must have been migrated.
///
/// # Errors
/// What differs, naming both; nothing was changed then, but for the row of a database that had none.
pub async fn check_installation(
    redis: &Redis,
    pool: &PgPool,
    environment: &str,
) -> Result<Installation, InstallationError> {
    let in_redis = read(redis).await?;
    if let Some(found) = &in_redis {
        belongs("Redis", found, environment)?;
    }
    let proposal = in_redis.clone().unwrap_or_else(|| Installation {
        environment: environment.to_owned(),
        installation_id: Uuid::new_v4(),
    });
    let row = installation::claim(pool, &proposal).await?;
    belongs("PostgreSQL database", &row, environment)?;
    let key = match in_redis {
        Some(found) => found,
        None => write(redis, &row).await?,
    };
    belongs("Redis", &key, environment)?;
    if key.installation_id != row.installation_id {
        return Err(InstallationError::Ids {
            environment: environment.to_owned(),
            redis: key.installation_id,
            database: row.installation_id,
        });
    }
    Ok(row)
}

fn belongs(store: &'static str, found: &Installation, environment: &str) -> Result<(), InstallationError> {
    if found.environment == environment {
        return Ok(());
    }
    Err(InstallationError::Environment {
        store,
        ours: environment.to_owned(),
        theirs: found.environment.clone(),
        installation_id: found.installation_id,
    })
}

async fn read(redis: &Redis) -> Result<Option<Installation>, InstallationError> {
    match redis.get(INSTALLATION_KEY).await {
        Ok(None) => Ok(None),
        Ok(Some(text)) => serde_json::from_str::<Written>(&text)
            .map(|w| Some(Installation { environment: w.environment, installation_id: w.installation_id }))
            .map_err(|e| InstallationError::NotARecord(e.to_string())),
        Err(error) if error.kind() == RedisErrorKind::WrongType => {
            Err(InstallationError::NotARecord("another type of value".into()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the key unless another process was first; what stands there then.
async fn write(redis: &Redis, row: &Installation) -> Result<Installation, InstallationError> {
    let written = Written { environment: row.environment.clone(), installation_id: row.installation_id };
    let text = serde_json::to_string(&written).map_err(|e| InstallationError::NotARecord(e.to_string()))?;
    let _: Option<String> = redis.command("SET", vec![INSTALLATION_KEY, &text, "NX"]).await?;
    Ok(read(redis).await?.unwrap_or_else(|| row.clone()))
}
