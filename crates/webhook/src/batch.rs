//! Deliveries that were taken are written down together: whoever ends while a statement is under way goes with the next one.

use tokio::sync::{mpsc, oneshot};
use voiceai_postgres::PgPool;

use crate::error::chain;
use crate::store::{self, Claimed, Ended};

/// Most ends of one statement.
const LOT: usize = 256;

struct Taken {
    claimed: Claimed,
    ended: Ended,
    answer: oneshot::Sender<bool>,
}

/// Writes down deliveries that were taken. Cheap to clone; ends with its last clone.
#[derive(Clone)]
pub(crate) struct Ledger(mpsc::Sender<Taken>);

impl Ledger {
    pub(crate) fn new(pool: PgPool) -> Self {
        let (sender, receiver) = mpsc::channel(LOT);
        tokio::spawn(keep(pool, receiver));
        Self(sender)
    }

    /// Answers once it is committed: whether the claim was still ours. `None`: it could not be written, and is the caller's again.
    pub(crate) async fn taken(&self, claimed: &Claimed, ended: &Ended) -> Option<bool> {
        let (answer, written) = oneshot::channel();
        let taken = Taken { claimed: claimed.clone(), ended: ended.clone(), answer };
        self.0.send(taken).await.ok()?;
        written.await.ok()
    }
}

async fn keep(pool: PgPool, mut receiver: mpsc::Receiver<Taken>) {
    let mut lot = Vec::with_capacity(LOT);
    while receiver.recv_many(&mut lot, LOT).await > 0 {
        let ends: Vec<_> = lot.iter().map(|taken| (&taken.claimed, &taken.ended)).collect();
        match store::deliver(&pool, &ends).await {
            Ok(ours) => {
                for taken in lot.drain(..) {
                    let _ = taken.answer.send(ours.contains(&taken.claimed.id));
                }
            }
            // Each is written by itself then, until it is: one that cannot be written does not keep the others.
            Err(error) => {
                tracing::debug!(error = %chain(&error), ends = lot.len(), "taken webhooks are written one by one");
                lot.clear();
            }
        }
    }
}
