//! What the tests of housekeeping share: the jobs on a database, run as a worker runs them.

use std::sync::Arc;

use serde_json::Value;
use voiceai_config::{Binary, Resolved};
use voiceai_egress::Rule;
use voiceai_platform::{
    AnalyticsAggregate, BillingPause, Cohorts, CommandsExpire, CreditsReset, ExecutionsExpire, Funnels,
    HousekeepingSettings, LlmAggregate, LlmAlerts, NewsletterSegments, NewsletterSequences, NewsletterSync,
    RetentionSweep, Stripe, SubscriptionsExpire, SubscriptionsMaintain, Upkeep, UsageAggregate,
};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgPool};
use voiceai_queue::{Inline, InlineRunner, NewJob, Registry};
use voiceai_testkit::Database;

use crate::stage;

/// Jobs, and the database they work on.
pub(crate) struct House {
    pub(crate) pool: PgPool,
    runner: InlineRunner,
}

impl House {
    /// With the platform's tables.
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With settings of the test's own.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        Self::on(stage::platform().await, settings).await
    }

    /// On a database of the caller's.
    pub(crate) async fn on(database: Database, settings: &[(&str, &str)]) -> Self {
        let pool = database.pool().await;
        let resolved = Resolved::from_pairs(Binary::Tasker, settings.iter().copied());
        let settings = resolved.read(HousekeepingSettings::read).unwrap().settings;
        let stripe = settings.stripe.as_ref().map(|stripe| Stripe::new(stripe, &Rule::default()).unwrap());
        let upkeep =
            Upkeep { pool: pool.clone(), settings: Arc::new(settings), stripe, event_bytes_max: 262_144 };
        let registry = Registry::new()
            .register::<RetentionSweep>(upkeep.clone())
            .register::<CommandsExpire>(upkeep.clone())
            .register::<ExecutionsExpire>(upkeep.clone())
            .register::<CreditsReset>(upkeep.clone())
            .register::<SubscriptionsExpire>(upkeep.clone())
            .register::<SubscriptionsMaintain>(upkeep.clone())
            .register::<BillingPause>(upkeep.clone())
            .register::<UsageAggregate>(upkeep.clone())
            .register::<AnalyticsAggregate>(upkeep.clone())
            .register::<Funnels>(upkeep.clone())
            .register::<Cohorts>(upkeep.clone())
            .register::<NewsletterSync>(upkeep.clone())
            .register::<NewsletterSegments>(upkeep.clone())
            .register::<NewsletterSequences>(upkeep.clone())
            .register::<LlmAggregate>(upkeep.clone())
            .register::<LlmAlerts>(upkeep);
        Self { pool, runner: InlineRunner::new(registry) }
    }

    pub(crate) async fn end(&self, kind: &'static str, payload: Value) -> Inline {
        self.runner.run(&NewJob::json(kind, &payload).unwrap()).await.end
    }

    /// Runs a job that ends well, and answers its result.
    #[track_caller]
    pub(crate) fn run(&self, kind: &'static str, payload: Value) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            match self.end(kind, payload).await {
                Inline::Done(Some(result)) => result,
                other => panic!("{kind} at {caller}: {other:?}"),
            }
        }
    }

    pub(crate) async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.unwrap();
    }

    /// One value, as text.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let sql = format!("SELECT ({sql})::text");
        let value: Option<String> =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap();
        value.unwrap_or_else(|| "NULL".to_owned())
    }

    /// Rows of a query as a JSON list.
    pub(crate) async fn rows(&self, sql: &str) -> Value {
        let sql = format!("SELECT COALESCE(jsonb_agg(to_jsonb(r)), '[]') FROM ({sql}) r");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }
}
