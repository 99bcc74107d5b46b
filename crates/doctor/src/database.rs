//! PostgreSQL: reachable, ours, up to date, with room left.

use std::time::Instant;

use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_postgres::{Component, MigrateError, PgPool, unapplied};
use voiceai_service::failures;

use crate::host::clock_finding;
use crate::redis::now;
use crate::{BOUND, Stores};

/// Of a server's connections; above, the next deployment may not get any.
const CONNECTIONS_WARNING: f64 = 0.8;

pub(crate) fn add(doctor: &mut Doctor, stores: &Stores, components: &'static [Component]) {
    let of = stores.clone();
    doctor.check("postgres.reachable", BOUND, async move { reachable(&of).await });
    let of = stores.clone();
    doctor.check("postgres.schema", BOUND, async move {
        match of.pool().await {
            Ok(pool) => schema(&pool, components).await,
            Err(skipped) => skipped,
        }
    });
    let of = stores.clone();
    doctor.check("postgres.connections", BOUND, async move { asked(&of, connections).await });
    let of = stores.clone();
    doctor.check("postgres.clock", BOUND, async move { asked(&of, clock).await });
}

async fn asked(stores: &Stores, look: impl AsyncFnOnce(PgPool) -> Result<Finding, sqlx::Error>) -> Finding {
    match stores.pool().await {
        Ok(pool) => look(pool).await.unwrap_or_else(|error| broken(&error)),
        Err(skipped) => skipped,
    }
}

fn broken(error: &sqlx::Error) -> Finding {
    let failure = failures::database(error);
    Finding::failed(failure.message, failure.remedy)
}

async fn reachable(stores: &Stores) -> Finding {
    let pool = match stores.connect_pool().await {
        Ok(pool) => pool,
        Err((what, remedy)) => return Finding::failed(what, remedy),
    };
    let start = Instant::now();
    let row =
        sqlx::query("SELECT current_database(), current_setting('server_version'), pg_is_in_recovery()");
    let row = match row.fetch_one(&pool).await {
        Ok(row) => row,
        Err(error) => return broken(&error),
    };
    let took = start.elapsed().as_secs_f64() * 1_000.0;
    let text = |at: usize| row.try_get::<String, _>(at).unwrap_or_default();
    let evidence = format!("database {} on PostgreSQL {} answers in {took:.1} ms", text(0), text(1));
    if row.try_get(2).unwrap_or(false) {
        return Finding::failed(
            format!("{evidence}, but it is a standby and takes no writes"),
            "Point DATABASE_URL at the primary.",
        );
    }
    Finding::ok(evidence)
}

async fn schema(pool: &PgPool, components: &[Component]) -> Finding {
    match unapplied(pool, components).await {
        Ok(left) if left.is_empty() => Finding::ok("every migration of this version is applied"),
        Ok(left) => Finding::warning(
            format!("not applied yet: {}", left.join(", ")),
            "Run `migrate`, or start the service, which does it first.",
        ),
        Err(error @ MigrateError::NewerBreaking { .. }) => {
            Finding::failed(error.to_string(), "Start the version that made this migration, or a newer one.")
        }
        Err(error) => {
            let failure = failures::migration(&error);
            Finding::failed(failure.message, failure.remedy)
        }
    }
}

async fn connections(pool: PgPool) -> Result<Finding, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::float8,
                current_setting('max_connections')::float8",
    );
    let row = row.fetch_one(&pool).await?;
    let (used, most): (f64, f64) = (row.try_get(0)?, row.try_get(1)?);
    let evidence = format!("{used:.0} of {most:.0} connections in use");
    if used >= most * CONNECTIONS_WARNING {
        return Ok(Finding::warning(
            evidence,
            "Find who holds them in pg_stat_activity; lower DATABASE_POOL_MAX or raise max_connections.",
        ));
    }
    Ok(Finding::ok(evidence))
}

async fn clock(pool: PgPool) -> Result<Finding, sqlx::Error> {
    let sent = now();
    let row = sqlx::query("SELECT extract(epoch FROM clock_timestamp())::float8").fetch_one(&pool).await?;
    Ok(clock_finding("PostgreSQL", row.try_get(0)?, sent, now()))
}
