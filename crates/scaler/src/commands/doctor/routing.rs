//! What Kamailio would load, and what it has loaded.

use voiceai_cli::doctor::Finding;
use voiceai_redis::Redis;
use voiceai_service::failures;

use super::CONNECT_WITHIN;
use crate::dispatcher::{Dispatcher, DispatcherSet, SHELF};
use crate::routing::proxies::Proxies;
use crate::settings::ScalerSettings;

/// Differences told of one proxy.
const TOLD: usize = 3;

async fn read(settings: &ScalerSettings) -> Result<(DispatcherSet, Vec<String>), Finding> {
    let mut dispatcher = settings.dispatcher.clone();
    dispatcher.connect_deadline = CONNECT_WITHIN;
    let asked = async {
        let dispatcher = Dispatcher::new(Redis::connect(&dispatcher).await?, &settings.dispatcher_prefix);
        Ok((dispatcher.read().await?, dispatcher.set_aside().await?))
    };
    asked.await.map_err(|error| {
        let failure = failures::redis(&error);
        Finding::failed(failure.message, "Check DISPATCHER_REDIS_URL and the Redis that Kamailio reads.")
    })
}

/// Records that were moved away tell of somebody who writes what would end Kamailio.
pub(super) async fn check_records(settings: &ScalerSettings) -> Finding {
    let (set, mut aside) = match read(settings).await {
        Ok(read) => read,
        Err(finding) => return finding,
    };
    if !aside.is_empty() {
        aside.sort();
        return Finding::warning(
            format!("records that Kamailio cannot load were moved away: {}", aside.join(", ")),
            format!("Find out who wrote them (HGETALL {SHELF}<name>), then DEL them there."),
        );
    }
    let off = set.records.iter().filter(|record| record.is_disabled()).count();
    let generation = set.generation;
    Finding::ok(format!(
        "{} records, {off} of them out of service, generation {generation}",
        set.records.len()
    ))
}

/// Each proxy has loaded what stands in Redis now.
pub(super) async fn check_proxies(settings: &ScalerSettings) -> Finding {
    let proxies = match Proxies::new(&settings.proxies) {
        Ok(proxies) if proxies.is_empty() => {
            return Finding::skipped("KAMAILIO_RPC_URLS is not set: Kamailio looks at the generation");
        }
        Ok(proxies) => proxies,
        Err(error) => return Finding::failed(error, "Correct KAMAILIO_RPC_URLS."),
    };
    let (set, _) = match read(settings).await {
        Ok(read) => read,
        Err(finding) => return finding,
    };
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (proxy, answer) in proxies.compare(&set).await {
        count += 1;
        match answer {
            Ok(differing) if differing.is_empty() => {}
            Ok(mut differing) => {
                differing.truncate(TOLD);
                wrong.push(format!("{proxy}: {}", differing.join(", ")));
            }
            Err(error) => wrong.push(format!("{proxy}: {error}")),
        }
    }
    if wrong.is_empty() {
        return Finding::ok(format!("{count} proxies have loaded the {} records", set.records.len()));
    }
    Finding::failed(
        wrong.join("; "),
        "Look at the proxy's log, at RPC_FROM in its site.cfg and at its way to Redis; the leader tells it again by itself.",
    )
}
