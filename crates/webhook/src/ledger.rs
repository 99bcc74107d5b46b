//! Ends that ask for nothing more than to be written are written together: whoever ends while a statement is under way goes with the
//! next one.

use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use voiceai_postgres::PgPool;
use voiceai_runtime::{Backoff, random_unit};

use crate::claim::{self, Busy, Claimed};
use crate::error::{WebhookError, chain};
use crate::store::{self, Ended};
use crate::{Wake, metrics};

/// Most ends of one statement.
const LOT: usize = 2_048;

/// From so many on, the next lot is let grow for a moment: a statement has a price of its own, and nobody waits for an end.
const MANY: usize = 64;
const LINGER: Duration = Duration::from_millis(4);

/// What is to be written of a claim.
pub(crate) struct Entry {
    pub(crate) claimed: Claimed,
    /// It was taken; else it was not begun, and is handed back.
    pub(crate) ended: Option<Ended>,
    /// One claim more may be made once it is written.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) claim: OwnedSemaphorePermit,
}

/// Where ends are told.
#[derive(Clone)]
pub(crate) struct Ledger(mpsc::Sender<Entry>);

impl Ledger {
    /// The writer ends when every clone of the ledger is gone and all is written.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Entry>) {
        let (sender, receiver) = mpsc::channel(LOT);
        (Self(sender), receiver)
    }

    /// Waits while too much is to be written already. An entry that nobody takes any more is that of a claim that runs out.
    pub(crate) async fn tell(&self, entry: Entry) {
        let _ = self.0.send(entry).await;
    }

    /// True when nothing is written any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// Writes what it is told, until the ledger is gone.
pub(crate) struct Writer {
    pub(crate) pool: PgPool,
    pub(crate) busy: Busy,
    pub(crate) wake: Wake,
    pub(crate) forced: CancellationToken,
}

impl Writer {
    /// Runs until every ledger is gone.
    pub(crate) async fn run(mut self, mut told: mpsc::Receiver<Entry>) {
        let mut lot = Vec::with_capacity(LOT);
        while told.recv_many(&mut lot, LOT).await > 0 {
            let (taken, back): (Vec<Entry>, Vec<Entry>) =
                lot.drain(..).partition(|entry| entry.ended.is_some());
            let many = taken.len() >= MANY;
            self.taken(&taken).await;
            self.back(&back).await;
            drop((taken, back));
            self.wake.wake();
            if many && told.len() < LOT / 2 {
                tokio::time::sleep(LINGER).await;
            }
        }
    }

    async fn taken(&mut self, all: &[Entry]) {
        if let Err(error) = self.deliver(all).await {
            if all.len() == 1 {
                tracing::error!(error = %chain(&error), "the end of a webhook attempt cannot be written");
                return;
            }
            // One that cannot be written does not keep the others.
            tracing::warn!(error = %chain(&error), ends = all.len(), "webhooks that were taken are written one by one");
            for one in all.chunks(1) {
                if let Err(error) = self.deliver(one).await {
                    tracing::error!(error = %chain(&error), "the end of a webhook attempt cannot be written");
                }
            }
        }
    }

    /// Until they are written, or the process is forced to end: an end that is lost is an event that arrives twice. An error is one of
    /// the data, which time does not mend.
    async fn deliver(&mut self, all: &[Entry]) -> Result<(), WebhookError> {
        let ends: Vec<_> =
            all.iter().filter_map(|entry| Some((&entry.claimed, entry.ended.as_ref()?))).collect();
        if ends.is_empty() {
            return Ok(());
        }
        let mut tries = 0;
        let ours = loop {
            match store::deliver(&self.pool, &mut self.busy, &ends).await {
                Ok(ours) => break ours,
                Err(error) if error.is_about_the_data() => return Err(error),
                Err(error) => {
                    if !again(&self.forced, &error, &mut tries).await {
                        return Ok(());
                    }
                }
            }
        };
        for (claimed, ended) in ends {
            claimed.is_written();
            if ours.contains(&claimed.id) {
                metrics::get().ended(ended.outcome, ended.took, false, false);
                tracing::debug!(endpoint.id = %claimed.target.id, delivery.id = %claimed.id, status = ended.status, "webhook delivered");
            } else {
                refused(claimed);
            }
        }
        Ok(())
    }

    async fn back(&self, all: &[Entry]) {
        let all: Vec<_> = all.iter().map(|entry| &entry.claimed).collect();
        if all.is_empty() {
            return;
        }
        match claim::hand_back(&self.pool, &all).await {
            Ok(()) => all.iter().for_each(|claimed| claimed.is_written()),
            Err(error) => {
                let count = all.len();
                tracing::warn!(error = %chain(&error), count, "webhooks that were claimed wait until their claim runs out");
            }
        }
    }
}

/// Waits until an end may be written once more. False: the process is forced to end.
pub(crate) async fn again(forced: &CancellationToken, error: &WebhookError, tries: &mut u32) -> bool {
    if *tries == 0 {
        tracing::warn!(error = %chain(error), "the end of a webhook attempt waits for PostgreSQL");
    }
    let wait = Backoff::RECONNECT.delay(*tries, random_unit());
    *tries += 1;
    forced.run_until_cancelled(tokio::time::sleep(wait)).await.is_some()
}

pub(crate) fn refused(claimed: &Claimed) {
    tracing::warn!(
        delivery.id = %claimed.id,
        "the end of a webhook attempt was refused: its claim had passed to another"
    );
}
