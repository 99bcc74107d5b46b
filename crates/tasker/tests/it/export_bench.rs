//! A database with tables to export, a bucket, and the jobs run in this process.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use voiceai_aws::{ObjectStore, S3Settings};
use voiceai_config::{Binary, Resolved};
use voiceai_egress::Rule;
use voiceai_queue::{Inline, InlineRunner, NewJob, Registry};
use voiceai_runtime::Secret;
use voiceai_tasker::jobs::export::{
    CallbackContext, Callbacks, Export, ExportCallback, ExportCleanup, ExportContext, ExportRun,
    ExportSettings, Format, Order, create, get,
};
use voiceai_testkit::{Database, S3, TcpProxy};
use voiceai_webhook::{Allowed, Client, Guard, Keys, SystemResolver, WebhookSettings};

pub(crate) struct Bench {
    pub(crate) database: Database,
    pub(crate) s3: S3,
    /// Stands between the exports and the bucket.
    pub(crate) way: TcpProxy,
    pub(crate) ctx: ExportContext,
}

impl Bench {
    /// With these tables.
    pub(crate) async fn new(tables: &str) -> Self {
        let database = voiceai_testkit::database().await;
        database.execute(tables).await;
        let s3 = voiceai_testkit::s3().await;
        let port: u16 = s3.endpoint.rsplit(':').next().unwrap().parse().unwrap();
        let way = TcpProxy::start(port).await;
        let ctx = ExportContext {
            store: ObjectStore::new(&Self::store(&s3, &way, &s3.bucket)).await,
            pool: database.pool().await,
            instance: "tasker-1".to_owned(),
            settings: ExportSettings {
                prefix: "exports".to_owned(),
                retention: Duration::from_secs(3600),
                link_ttl: Duration::from_secs(60),
                tables: Vec::new(),
                callback_keys: None,
                callback_timeout: Duration::from_secs(5),
                callback_ladder: [0, 10, 60].map(Duration::from_secs).into(),
                lease: Duration::from_secs(60),
            },
        };
        Self { database, s3, way, ctx }
    }

    /// The way to another bucket of the same store.
    pub(crate) fn store(s3: &S3, way: &TcpProxy, bucket: &str) -> S3Settings {
        S3Settings {
            bucket: bucket.to_owned(),
            prefix: String::new(),
            endpoint: Some(format!("http://127.0.0.1:{}", way.port())),
            public_endpoint: None,
            region: "us-east-1".to_owned(),
            keys: Some((Secret::new(s3.access_key.clone()), Secret::new(s3.secret_key.clone()))),
            renewed: None,
            checksums: false,
            instance_profile: false,
            way: Rule::default(),
        }
    }

    pub(crate) async fn order(&self, format: Format, tenant: Option<&str>, filters: Value) -> Export {
        self.order_of("devices", format, tenant, filters).await
    }

    pub(crate) async fn order_of(
        &self,
        export_type: &str,
        format: Format,
        tenant: Option<&str>,
        filters: Value,
    ) -> Export {
        let order = Order {
            export_type: export_type.to_owned(),
            format,
            tenant: tenant.map(str::to_owned),
            filters,
            created_by: "tester".to_owned(),
            callback_url: None,
        };
        create(&self.ctx.pool, &order).await.expect("an order")
    }

    pub(crate) async fn run(&self, order: &Export) -> Inline {
        let runner = InlineRunner::new(Registry::new().register::<ExportRun>(self.ctx.clone()));
        runner.run(&NewJob::of(&ExportRun { id: order.id }).expect("a payload")).await.end
    }

    /// Runs an order that must end well, and answers its row and its object.
    pub(crate) async fn made(&self, order: &Export) -> (Export, Vec<u8>) {
        let end = self.run(order).await;
        assert!(matches!(end, Inline::Done(Some(_))), "{end:?}: {:?}", self.look(order).await);
        let made = self.look(order).await;
        assert_eq!(made.status, "COMPLETED", "{made:?}");
        let object = self.s3.get(made.file_path.as_deref().expect("a key")).await.expect("the object");
        assert_eq!(Some(object.len() as i64), made.file_size_bytes);
        (made, object)
    }

    pub(crate) async fn clean(&self) -> Inline {
        let runner = InlineRunner::new(Registry::new().register::<ExportCleanup>(self.ctx.clone()));
        runner.run(&NewJob::of(&ExportCleanup {}).expect("a payload")).await.end
    }

    pub(crate) async fn cleanup(&self) -> Value {
        match self.clean().await {
            Inline::Done(Some(result)) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Calls the order's callback once, as its job does.
    pub(crate) async fn call(&self, order: &Export, keys: Option<Keys>) -> Inline {
        let resolved = Resolved::from_pairs(Binary::Tasker, [("ENVIRONMENT", "test")]);
        let settings = resolved.read(WebhookSettings::read).expect("settings").settings;
        let loopback = IpAddr::from([127, 0, 0, 1]).to_string();
        let guard =
            Guard::new(Allowed::parse(&[loopback], true).expect("an address"), Arc::new(SystemResolver));
        let client = Client::new(&settings, guard, Rule::default()).expect("a client");
        let own = &self.ctx.settings;
        let callbacks =
            Callbacks { client, keys, timeout: own.callback_timeout, ladder: own.callback_ladder.clone() };
        let context = CallbackContext { pool: self.ctx.pool.clone(), callbacks };
        let runner = InlineRunner::new(Registry::new().register::<ExportCallback>(context));
        runner.run(&NewJob::of(&ExportCallback { id: order.id }).expect("a payload")).await.end
    }

    pub(crate) async fn look(&self, order: &Export) -> Export {
        get(&self.ctx.pool, order.id).await.expect("an answer").expect("the row")
    }
}
