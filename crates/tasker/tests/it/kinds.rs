//! Kinds and schedules: what the command line knows of is what a worker handles, and what comes by itself.

use std::collections::BTreeSet;

use serde_json::Value;
use voiceai_config::{Binary, Resolved};
use voiceai_queue::cron::Definition;
use voiceai_tasker::jobs::registry::{self, Kinds};
use voiceai_tasker::operate::queues::BUILT_IN;
use voiceai_tasker::settings::TaskerSettings;

use crate::stage::{PATIENCE, Stage};

/// Settings as the binary reads them from these variables.
pub(crate) fn settings(pairs: &[(&str, &str)]) -> TaskerSettings {
    let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
    resolved.read(TaskerSettings::read).unwrap_or_else(|report| panic!("{report}")).settings
}

/// The schedules that come by themselves on [`Stage::program`].
pub(crate) fn built_in() -> Vec<Definition> {
    registry::schedules(&settings(&[]))
}

/// The slots of a process on [`Stage::program`]: those of each queue that a kind of ours goes to.
pub(crate) fn capacity() -> u32 {
    let settings = settings(&EVERYTHING[..1]);
    let kinds = Kinds::of(&settings);
    let queues: BTreeSet<_> = kinds.names().map(|name| kinds.queue_of(name)).chain(BUILT_IN).collect();
    queues.into_iter().map(|queue| settings.pool(queue).concurrency).sum()
}

/// Everything that a setting can switch on.
const EVERYTHING: [(&str, &str); 10] = [
    ("DIAGNOSTIC_JOBS", "true"),
    ("S3_BUCKET", "backups"),
    ("S3_ENDPOINT", "http://127.0.0.1:1"),
    ("S3_ACCESS_KEY", "key"),
    ("S3_SECRET_KEY", "secret"),
    ("S3_REGION", "us-east-1"),
    ("RECORDING_ENABLED", "true"),
    ("RECORDINGS_S3_BUCKET", "recordings"),
    ("ORCHESTRATION_AGENTS_URL", "http://127.0.0.1:1"),
    ("STRIPE_SECRET_KEY", "sk_test_nobody"),
];

#[tokio::test]
async fn workers_handle_the_kinds_that_the_command_line_knows() {
    let stage = Stage::new().await;
    for pairs in [&EVERYTHING[..1], &EVERYTHING[..]] {
        let process = stage.program().envs(pairs.iter().copied()).arg("run").start();
        let line = process.wait_for_line(PATIENCE, "job kinds registered").await;
        let line: Value = serde_json::from_str(&line).unwrap();
        let handled: BTreeSet<_> = line["kinds"]
            .as_str()
            .unwrap_or_else(|| panic!("{line}"))
            .split(',')
            .map(str::to_owned)
            .collect();
        let kinds = Kinds::of(&settings(pairs));
        let known: BTreeSet<_> = kinds.names().map(str::to_owned).collect();
        assert_eq!(handled, known);
        assert_eq!(kinds.names().count(), known.len(), "none twice");
        process.terminate();
        process.wait_exit(PATIENCE).await;
    }
}

#[test]
fn every_schedule_that_comes_by_itself_fires_a_kind_that_takes_its_payload() {
    let everything = settings(&EVERYTHING);
    let kinds = Kinds::of(&everything);
    let schedules = registry::schedules(&everything);
    for schedule in &schedules {
        schedule.check().unwrap_or_else(|error| panic!("{error}"));
        let kind = kinds
            .get(&schedule.kind)
            .unwrap_or_else(|| panic!("{}: no kind {}", schedule.name, schedule.kind));
        assert_eq!(kind.queue, schedule.queue, "{}", schedule.name);
        kind.check_payload(&schedule.payload.to_string())
            .unwrap_or_else(|error| panic!("{}: {error}", schedule.name));
    }
    let names: BTreeSet<_> = schedules.iter().map(|schedule| &schedule.name).collect();
    assert_eq!(names.len(), schedules.len(), "none twice");
}
