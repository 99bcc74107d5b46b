//! The backup as the queue runs it.

use voiceai_queue::{DeadReason, Inline, InlineRunner, JobId, NewJob, Registry};
use voiceai_tasker::jobs::backup::{BackupDatabase, Tools, list};

use super::{Bench, tools_with};

fn job(verify: bool) -> NewJob {
    let id = JobId::chosen("backup-2026-11-22").expect("an id");
    NewJob::of(&BackupDatabase { verify, ..BackupDatabase::default() }).expect("a payload").id(id)
}

fn runner(bench: &Bench) -> InlineRunner {
    InlineRunner::new(Registry::new().register::<BackupDatabase>(bench.ctx.clone()))
}

#[tokio::test]
async fn a_job_delivered_twice_takes_one_backup_and_proves_it() {
    let bench = Bench::new().await;
    let mut results = Vec::new();
    for number in [1, 2] {
        match runner(&bench).attempt(&job(true), number).await.end {
            Inline::Done(Some(result)) => results.push(result),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(results[0], results[1]);
    let listed = list(&bench.ctx, 10, None).await.expect("a list").backups;
    assert_eq!(listed.len(), 1);
    let proof = listed[0].proof.as_ref().expect("a proof");
    assert!(proof.proved);
    assert_eq!(results[0]["backup_id"], proof.id);
    assert_eq!(results[0]["proved_at"], serde_json::json!(proof.at));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_a_person_must_mend_is_not() {
    let mut bench = Bench::new().await;
    let (_folder, failing) = tools_with("exit 1");
    bench.ctx.tools = failing;
    let ended = runner(&bench).run(&job(false)).await.end;
    assert!(matches!(&ended, Inline::Retry { error, .. } if error.contains("exit code 1")), "{ended:?}");
    bench.ctx.tools = Tools::in_folders(vec![]);
    let ended = runner(&bench).run(&job(false)).await.end;
    assert!(matches!(ended, Inline::Dead { reason: DeadReason::DiscardedByHandler, .. }), "{ended:?}");
    let unknown = serde_json::json!({ "verfy": true });
    let ended = runner(&bench).run(&NewJob::json("backup.database", &unknown).expect("a payload")).await.end;
    assert!(matches!(ended, Inline::Dead { reason: DeadReason::BadPayload, .. }), "{ended:?}");
}
