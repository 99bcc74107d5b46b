//! A database, a leader's tenure, a monitor in a hurry.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use voiceai_egress::Rule;
use voiceai_monitor::view::{self, Line};
use voiceai_monitor::{
    Announcer, Monitor, MonitorError, MonitorSettings, Policy, Prober, Round, Service, ServiceEvent,
};
use voiceai_postgres::term::{Candidate, issue};
use voiceai_postgres::{PgPool, Tenure, sqlx};
use voiceai_runtime::{Pulse, Vitals, boot_now};
use voiceai_testkit::{Database, database};

pub(crate) const LIMIT: Duration = Duration::from_millis(500);

pub(crate) struct Stage {
    _database: Database,
    pub(crate) pool: PgPool,
    pub(crate) tenure: Tenure,
    pub(crate) policy: Policy,
    pub(crate) rule: Rule,
    pub(crate) services: Vec<Service>,
    /// What was told, a list for each transaction.
    pub(crate) told: Arc<Mutex<Vec<Vec<ServiceEvent>>>>,
    pub(crate) refuse: Arc<Mutex<bool>>,
}

impl Stage {
    pub(crate) async fn new(services: &[(&str, &str)]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let database = database().await;
        let pool = database.pool().await;
        let mut this = Self {
            _database: database,
            tenure: elected(&pool).await,
            pool,
            policy: Policy { alert_after: 2, recover_after: 2, alerts: true },
            rule: Rule::default(),
            services: Vec::new(),
            told: Arc::default(),
            refuse: Arc::default(),
        };
        this.watch(services);
        this
    }

    pub(crate) fn watch(&mut self, services: &[(&str, &str)]) {
        self.services = services.iter().map(|(name, url)| Service::new(*name, url).unwrap()).collect();
    }

    pub(crate) fn settings(&self) -> MonitorSettings {
        MonitorSettings {
            services: self.services.clone(),
            interval: Duration::from_secs(60),
            timeout: LIMIT,
            concurrency: 64,
            policy: self.policy,
        }
    }

    fn announcer(&self) -> Announcer {
        let (told, refuse) = (Arc::clone(&self.told), Arc::clone(&self.refuse));
        Arc::new(move |connection, events| {
            let (told, refuse) = (Arc::clone(&told), Arc::clone(&refuse));
            Box::pin(async move {
                if *refuse.lock().unwrap() {
                    sqlx::query("SELECT 1 / 0").execute(connection).await?;
                }
                told.lock().unwrap().push(events.to_vec());
                Ok(())
            })
        })
    }

    pub(crate) fn monitor(&self) -> Monitor {
        let prober = Prober::new(&self.rule, LIMIT).unwrap();
        Monitor::new(self.pool.clone(), prober, self.settings(), self.announcer())
    }

    pub(crate) async fn try_round(&self) -> Result<Round, MonitorError> {
        self.monitor().round(&self.tenure, &pulse()).await
    }

    pub(crate) async fn round(&self) -> Round {
        self.try_round().await.unwrap()
    }

    pub(crate) async fn lines(&self) -> Vec<Line> {
        view::list(&self.pool, &self.settings(), Timestamp::now()).await.unwrap()
    }

    pub(crate) async fn line(&self, service: &str) -> Line {
        self.lines().await.into_iter().find(|line| line.service == service).unwrap()
    }

    /// Open alerts and all alerts.
    pub(crate) async fn alerts(&self) -> (i64, i64) {
        sqlx::query_as("SELECT count(*) FILTER (WHERE closed_at IS NULL), count(*) FROM ops.system_alerts")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// The names of what was told so far, by transaction.
    pub(crate) fn told(&self) -> Vec<Vec<String>> {
        let told = self.told.lock().unwrap();
        let name = |event: &ServiceEvent| format!("{} {}", event.name(), event.service);
        told.iter().map(|events| events.iter().map(name).collect()).collect()
    }
}

/// A pulse that nobody feels.
pub(crate) fn pulse() -> Pulse {
    Vitals::new().register("test", Duration::from_secs(600))
}

/// A new term, for ten minutes.
pub(crate) async fn elected(pool: &PgPool) -> Tenure {
    let candidate =
        Candidate { name: "voiceai:tasker:leader", service: "test", holder: "one", host: "here", pid: 1 };
    let issued = issue(pool, &candidate, 0).await.unwrap();
    Tenure::new(issued.term, boot_now().saturating_add(Duration::from_secs(600)), false)
}
