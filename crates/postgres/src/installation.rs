//! Which environment a database belongs to.

use sqlx::{PgPool, Row};
use uuid::Uuid;

/// The environment and identity that the first start wrote down.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Installation {
    /// ENVIRONMENT of the first start.
    pub environment: String,
    /// Made by the first start.
    pub installation_id: Uuid,
}

/// The installation that this database belongs to; writes `proposal` where there is none yet. Of several processes that
/// start at once, one writes and all read the same.
///
/// # Errors
/// As the database says.
pub async fn claim(pool: &PgPool, proposal: &Installation) -> Result<Installation, sqlx::Error> {
    sqlx::query(
        "INSERT INTO ops.installation (environment, installation_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(&proposal.environment)
    .bind(proposal.installation_id)
    .execute(pool)
    .await?;
    let row =
        sqlx::query("SELECT environment, installation_id FROM ops.installation").fetch_one(pool).await?;
    Ok(Installation { environment: row.try_get(0)?, installation_id: row.try_get(1)? })
}
