//! `release --restored`

use serde_json::json;
use voiceai_cli::{Failure, Output, Question, confirm};
use voiceai_postgres::term;

use super::{Service, act};
use crate::cli::Release;
use crate::operate::{database_failure, trail};

pub(super) async fn run(command: Release, service: &Service, output: Output) -> Result<(), Failure> {
    let act = act(&command.mutation)?;
    let pool = service.pool().await?;
    let key = &service.shared.leader.key;
    let held = term::held_reason(&pool, key).await.map_err(|error| database_failure(&error))?;
    let Some(reason) = held else {
        let answer = json!({ "election": key, "released": false, "held_reason": null });
        return output.one(&answer, |_| format!("{key} is not held; nothing was changed\n"));
    };
    if command.mutation.dry_run {
        let answer = json!({ "election": key, "released": false, "held_reason": reason, "dry_run": true });
        return output.one(&answer, |_| format!("would release {key}, held because: {reason}\n"));
    }
    let object = format!("{key}, held because {reason}");
    confirm(&command.mutation, &Question { verb: "Release", object: &object, count: None })?;
    trail::record(&pool, &act, "leader.release", key, json!({ "held_reason": reason })).await?;
    let released = term::release(&pool, key).await.map_err(|error| database_failure(&error))?;
    let answer = json!({ "election": key, "released": released, "held_reason": reason });
    output.one(&answer, |_| format!("{key} is released; its leader acts again within one heartbeat\n"))
}
