//! The real binaries on real servers: starting, running without a backend, stopping.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of tests fails the test by panicking")]

mod configuration;
mod providers;
mod running;
mod shipping;
mod starting;
mod stopping;

use std::time::Duration;

use voiceai_e2e::{Platform, Stores};

/// Both services, so that what they promise alike is tested on both.
const BINARIES: [&str; 2] = ["voiceai-scaler", "voiceai-tasker"];
/// For what takes a moment on an idle machine, on a busy one.
const SOON: Duration = Duration::from_secs(30);
const READY: &str = "service ready";

/// A platform on databases of its own.
async fn platform() -> Platform {
    let redis = voiceai_testkit::redis().await;
    let database = voiceai_testkit::empty_database().await;
    let platform = platform_on(&redis.url, &database.url).await;
    // Both are given back when the test's process ends.
    std::mem::forget((redis, database));
    platform
}

async fn platform_on(redis_url: &str, database_url: &str) -> Platform {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dispatcher = voiceai_testkit::redis().await;
    let s3 = voiceai_testkit::s3().await;
    let stores = Stores {
        redis_url: redis_url.to_owned(),
        dispatcher_url: dispatcher.url.clone(),
        database_url: database_url.to_owned(),
        s3: [
            ("S3_ENDPOINT", s3.endpoint),
            ("S3_ACCESS_KEY", s3.access_key),
            ("S3_SECRET_KEY", s3.secret_key),
            ("S3_BUCKET", s3.bucket),
        ],
    };
    std::mem::forget(dispatcher);
    let mut platform = Platform::new(stores).expect("make a platform");
    platform.set("LEADER_HEARTBEAT_INTERVAL_MS", "300");
    platform.set("LEADER_LOCK_TTL_MS", "1000");
    platform
}
