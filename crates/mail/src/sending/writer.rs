use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use voiceai_postgres::PgPool;
use voiceai_runtime::{Backoff, Pulse, random_unit};

use crate::error::{MailError, chain};
use crate::store::finish::{Finished, finish};

/// Most ends of one statement.
const BATCH: usize = 128;

/// Where ends of attempts are handed in. Cheap to clone; the writer ends when all are gone.
#[derive(Clone)]
pub(super) struct Desk(mpsc::Sender<(Finished, oneshot::Sender<()>)>);

/// Commits ends of attempts: as many as have come while the last statement ran go into the next.
pub(super) struct Writer {
    pool: PgPool,
    ends: mpsc::Receiver<(Finished, oneshot::Sender<()>)>,
}

pub(super) fn new(pool: PgPool) -> (Desk, Writer) {
    let (hand_in, ends) = mpsc::channel(BATCH * 4);
    (Desk(hand_in), Writer { pool, ends })
}

impl Desk {
    /// Waits until `end` is committed, or refused because its claim has passed to another, or the writer was forced to end.
    pub(super) async fn write(&self, end: Finished) {
        let (tell, told) = oneshot::channel();
        if self.0.send((end, tell)).await.is_ok() {
            let _ = told.await;
        }
    }
}

impl Writer {
    /// Writes until every desk is gone. While the database is away it tries on: an end that is lost would make a sent mail unknown.
    pub(super) async fn run(mut self, forced: CancellationToken, pulse: Pulse) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            pulse.beat();
            let got = tokio::select! {
                got = self.ends.recv_many(&mut batch, BATCH) => got,
                () = tokio::time::sleep(Duration::from_secs(5)) => continue,
            };
            if got == 0 {
                return;
            }
            let (ends, tell): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
            if !self.write(&ends, &forced, &pulse).await {
                return;
            }
            for tell in tell {
                let _ = tell.send(());
            }
        }
    }

    /// False: forced to give up.
    async fn write(&self, ends: &[Finished], forced: &CancellationToken, pulse: &Pulse) -> bool {
        let mut tries = 0;
        loop {
            pulse.beat();
            let error = match finish(&self.pool, ends).await {
                Ok(written) => {
                    let refused = ends.len() as u64 - written.min(ends.len() as u64);
                    if refused > 0 {
                        tracing::warn!(
                            refused,
                            "ends of mail attempts were refused: their claims had passed to others"
                        );
                    }
                    return true;
                }
                Err(error) => error,
            };
            if !error.is_unavailable() && !error.is_conflict() && !times_out(&error) {
                // One row that cannot be written must not keep the others back.
                if let [only] = ends {
                    tracing::error!(error = %chain(&error), end = ?only, "the end of a mail attempt cannot be written");
                    return true;
                }
                for end in ends {
                    if !Box::pin(self.write(std::slice::from_ref(end), forced, pulse)).await {
                        return false;
                    }
                }
                return true;
            }
            tracing::warn!(error = %chain(&error), "ends of mail attempts wait for PostgreSQL");
            let wait = Backoff::RECONNECT.delay(tries, random_unit());
            tries += 1;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = forced.cancelled() => return false,
            }
        }
    }
}

/// A statement or a lock that took too long may succeed later.
fn times_out(error: &MailError) -> bool {
    let MailError::Database { source: voiceai_postgres::sqlx::Error::Database(error), .. } = error else {
        return false;
    };
    error.code().is_some_and(|code| code == "57014" || code == "55P03")
}
