use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use voiceai_postgres::PgPool;
use voiceai_runtime::Pulse;

use crate::error::chain;
use crate::store::claim::{Key, contents_begin};

/// Longest wait for the database to take down that content is about to go out. The peer waits meanwhile.
const LIMIT: Duration = Duration::from_secs(5);
/// Most attempts of one statement.
const BATCH: usize = 128;

type Answer = Result<bool, String>;

/// Where attempts say that their content is about to go out. Cheap to clone; the marker ends when all are gone.
#[derive(Clone)]
pub(super) struct Marks(mpsc::Sender<(Key, oneshot::Sender<Answer>)>);

/// Commits the point of no return for attempts: those that reach it while the last statement ran are written by the next one.
pub(super) struct Marker {
    pool: PgPool,
    keys: mpsc::Receiver<(Key, oneshot::Sender<Answer>)>,
}

pub(super) fn new(pool: PgPool) -> (Marks, Marker) {
    let (hand_in, keys) = mpsc::channel(BATCH * 4);
    (Marks(hand_in), Marker { pool, keys })
}

impl Marks {
    /// Returns once it is committed that the content of `key` is about to go out. `Ok(false)`: the claim is not ours any more.
    pub(super) async fn begin(&self, key: &Key) -> Answer {
        let (tell, told) = oneshot::channel();
        let asked = async {
            self.0.send((key.clone(), tell)).await.ok()?;
            told.await.ok()
        };
        match tokio::time::timeout(LIMIT, asked).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err("this process is about to end".to_owned()),
            Err(_) => Err(format!("PostgreSQL gave no answer within {LIMIT:?}")),
        }
    }
}

impl Marker {
    /// Writes until every [`Marks`] is gone.
    pub(super) async fn run(mut self, pulse: Pulse) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            pulse.beat();
            let got = tokio::select! {
                got = self.keys.recv_many(&mut batch, BATCH) => got,
                () = tokio::time::sleep(LIMIT) => continue,
            };
            if got == 0 {
                return;
            }
            // Who has given up waiting must not be marked: nothing of his goes out.
            let waiting = batch.drain(..).filter(|(_, tell)| !tell.is_closed());
            let (keys, tell): (Vec<_>, Vec<_>) = waiting.unzip();
            if keys.is_empty() {
                continue;
            }
            let written = match tokio::time::timeout(LIMIT, contents_begin(&self.pool, &keys)).await {
                Ok(written) => written.map_err(|error| chain(&error)),
                Err(_) => Err(format!("PostgreSQL gave no answer within {LIMIT:?}")),
            };
            for (key, tell) in keys.iter().zip(tell) {
                let _ =
                    tell.send(written.as_ref().map(|ours| ours.contains(&key.token)).map_err(Clone::clone));
            }
        }
    }
}
