//! Work that only the leader does, in rounds, in a loop that every process runs.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::Tenure;
use voiceai_runtime::Pulse;

/// What the leader does again and again, and what it alone may report.
pub trait Rounds: Send {
    /// One round, and how long to wait for the next. It is cut off at any of its waits when the leadership changes or the process stops:
    /// what has to be done whole is one statement.
    fn round(&mut self) -> impl Future<Output = Duration> + Send;

    /// Takes back what only the leader reports. Called whenever this process does not lead, and at the end.
    fn silence(&mut self);
}

/// Makes rounds until `stopping`, whenever `tenure` says that this process leads, and looks each `idle` whether it does.
///
/// A round that hangs on a store keeps nothing in place: as soon as another leads, this process is silent.
pub async fn while_leading(
    mut rounds: impl Rounds,
    mut tenure: watch::Receiver<Option<Tenure>>,
    stopping: CancellationToken,
    pulse: Pulse,
    idle: Duration,
) {
    let mut election_is_over = false;
    while !stopping.is_cancelled() {
        pulse.beat();
        let leads = tenure.borrow_and_update().as_ref().is_some_and(Tenure::is_trusted);
        let mut wait = idle;
        if leads {
            tokio::select! {
                () = stopping.cancelled() => break,
                changed = tenure.changed(), if !election_is_over => {
                    election_is_over = changed.is_err();
                    continue;
                }
                until = rounds.round() => wait = until,
            }
        } else {
            rounds.silence();
        }
        pulse.beat();
        tokio::select! {
            () = stopping.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
            changed = tenure.changed(), if !election_is_over => election_is_over = changed.is_err(),
        }
    }
    rounds.silence();
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;
    use voiceai_postgres::Term;
    use voiceai_runtime::{Vitals, boot_now};

    use super::*;

    const EVERY: Duration = Duration::from_secs(30);
    const IDLE: Duration = Duration::from_secs(5);

    /// Tells what it did, and when.
    #[derive(Clone, Default)]
    struct Told {
        did: Arc<Mutex<Vec<(&'static str, u64)>>>,
        hangs: bool,
    }

    impl Told {
        fn tell(&self, what: &'static str, since: Instant) {
            self.did.lock().expect("not poisoned").push((what, since.elapsed().as_secs()));
        }

        fn all(&self) -> Vec<(&'static str, u64)> {
            self.did.lock().expect("not poisoned").clone()
        }
    }

    struct Recorded(Told, Instant);

    impl Rounds for Recorded {
        async fn round(&mut self) -> Duration {
            self.0.tell("round", self.1);
            if self.0.hangs {
                std::future::pending::<()>().await;
            }
            EVERY
        }

        fn silence(&mut self) {
            self.0.tell("silence", self.1);
        }
    }

    fn leader(lasts: Duration) -> Option<Tenure> {
        let term = Term { name: "tasker".into(), number: 1 };
        Some(Tenure::new(term, boot_now().saturating_add(lasts), false))
    }

    struct Running {
        told: Told,
        tenure: watch::Sender<Option<Tenure>>,
        stopping: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    fn start(hangs: bool, tenure: Option<Tenure>) -> Running {
        let told = Told { hangs, ..Told::default() };
        let (tenure, receiver) = watch::channel(tenure);
        let stopping = CancellationToken::new();
        let pulse = Vitals::new().register("rounds", Duration::from_secs(60));
        let rounds = Recorded(told.clone(), Instant::now());
        let task = tokio::spawn(while_leading(rounds, receiver, stopping.clone(), pulse, IDLE));
        Running { told, tenure, stopping, task }
    }

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test(start_paused = true)]
    async fn a_leader_makes_its_rounds_and_a_follower_is_silent_and_looks_more_often() {
        let running = start(false, None);
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert_eq!(running.told.all(), [("silence", 0), ("silence", 5)]);
        running.tenure.send_replace(leader(LONG));
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(
            running.told.all()[2..],
            [("round", 7), ("round", 37)],
            "at once, and then as the round says"
        );
        running.tenure.send_replace(None);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(running.told.all()[4..], [("silence", 47)], "at once, in the middle of a wait");
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_hangs_is_cut_off_by_a_new_leader_and_by_the_stop() {
        let running = start(true, leader(LONG));
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(running.told.all(), [("round", 0)]);
        running.tenure.send_replace(None);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(running.told.all()[1..], [("silence", 100)]);
        running.tenure.send_replace(leader(LONG));
        tokio::time::sleep(Duration::from_secs(1)).await;
        running.stopping.cancel();
        running.task.await.expect("no panic");
        assert_eq!(running.told.all()[2..], [("round", 101), ("silence", 102)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenure_that_ran_out_leads_nobody_and_the_end_of_the_election_ends_nothing() {
        let running = start(false, leader(Duration::ZERO));
        drop(running.tenure);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(running.told.all(), [("silence", 0), ("silence", 0), ("silence", 5), ("silence", 10)]);
        running.stopping.cancel();
        running.task.await.expect("no panic");
    }
}
