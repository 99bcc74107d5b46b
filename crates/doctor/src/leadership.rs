//! Who leads, and whether the two stores agree about it.

use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_leader::current;
use voiceai_postgres::term::standing;
use voiceai_redis::Value;
use voiceai_service::{Shared, failures};

use crate::{BOUND, Stores};

pub(crate) fn add(doctor: &mut Doctor, stores: &Stores, shared: &Shared) {
    let (stores, key) = (stores.clone(), shared.leader.key.clone());
    doctor.check("leader.key", BOUND, async move {
        match leader(&stores, &key).await {
            Ok(finding) | Err(finding) => finding,
        }
    });
}

async fn leader(stores: &Stores, key: &str) -> Result<Finding, Finding> {
    let redis = stores.redis().await?;
    let record = current(&redis, key).await.map_err(|error| {
        Finding::failed(
            error.to_string(),
            format!("Look at it with `GET {key}`; delete it when it is not ours."),
        )
    })?;
    let Some(record) = record else {
        return Ok(Finding::failed(
            format!("nobody leads: the key {key} is empty"),
            "Start the service; if it runs, look for `leader lost` in its log and at redis.reachable there.",
        ));
    };
    let left: i64 = redis.command("PTTL", vec![Value::from(key)]).await.map_err(|error| {
        let failure = failures::redis(&error);
        Finding::failed(failure.message, failure.remedy)
    })?;
    let who =
        format!("{} on {} (process {}), term {}", record.instance_id, record.host, record.pid, record.term);
    if left < 0 {
        return Ok(Finding::failed(
            format!("{who}, but the key {key} never expires, so nobody can follow"),
            format!("Run `DEL {key}`: somebody wrote it by hand or took its time away."),
        ));
    }
    let evidence = format!("{who} since {}, {left} ms left", record.elected_at);
    let Ok(pool) = stores.pool().await else { return Ok(Finding::ok(evidence)) };
    match standing(&pool, key).await {
        Ok(Some(newest)) if newest.held_reason.is_some() => Ok(Finding::warning(
            format!("{evidence}; held: {}", newest.held_reason.unwrap_or_default()),
            "Look why, then release it: `voiceai-scaler resume --all` or `voiceai-tasker release --restored --reason R`.",
        )),
        // Term 0: elected this moment.
        Ok(Some(newest)) if newest.term != record.term && record.term != 0 => Ok(Finding::warning(
            format!("{evidence}; PostgreSQL's newest term is {}", newest.term),
            "Look again in a moment: the older leader steps down by itself.",
        )),
        Ok(_) => Ok(Finding::ok(evidence)),
        Err(error) => {
            let failure = failures::database(&error);
            Ok(Finding::warning(format!("{evidence}; {}", failure.message), failure.remedy))
        }
    }
}
