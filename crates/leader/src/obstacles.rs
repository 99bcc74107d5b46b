//! What keeps a follower from leading: told to people once, and repaired where that is safe.

use voiceai_redis::RedisError;
use voiceai_runtime::boot_now;

use crate::lease::{Held, Lease};
use crate::settings::Timing;
use crate::stuck::{Verdict, Watched};

pub(crate) struct Obstacles {
    key: String,
    timing: Timing,
    watched: Watched,
    /// Who led, or what stood in the way, when it was last logged.
    last: Option<String>,
}

impl Obstacles {
    pub(crate) fn new(key: &str, timing: Timing) -> Self {
        Self { key: key.to_owned(), timing, watched: Watched::default(), last: None }
    }

    /// Nothing stands in the way any more.
    pub(crate) fn clear(&mut self) {
        self.watched.forget();
        self.last = None;
    }

    /// Redis could not be asked.
    pub(crate) fn unanswered(&mut self, error: &RedisError) {
        // What was seen before says nothing about the time in between.
        self.watched.forget();
        self.once(error.to_string(), |election, why| {
            tracing::warn!(election, error = why, "cannot ask for the lease");
        });
    }

    /// Deals with what stands in the leader key instead of our lease.
    pub(crate) async fn meet(&mut self, lease: &Lease, held: &Held) {
        let key = self.key.clone();
        let text = match held {
            Held::Nothing => return,
            Held::OtherType(kind) => {
                self.watched.forget();
                // Somebody's data: never removed by us.
                tracing::error!(
                    election = key,
                    kind,
                    remedy = format!(
                        "if nothing else uses `{key}`, remove it with `DEL {key}`; else choose another leader key"
                    ),
                    "nobody can lead: the leader key holds another type of value"
                );
                return;
            }
            Held::Text(text) => text,
        };
        self.once(held.describe(), |election, who| tracing::info!(election, leader = who, "follows"));
        match self.watched.look(text, self.timing.ttl, boot_now()) {
            Verdict::Wait { odd: false } => {}
            Verdict::Wait { odd: true } => tracing::warn!(
                election = key,
                remaining_ms = text.left.map(|left| left.as_millis()),
                remedy = format!("if nobody leads, it is mended by itself; `DEL {key}` is quicker"),
                "the lease would not run out in time: it has no time limit or one longer than its holder gives"
            ),
            Verdict::Mend { not_stuck } => {
                self.watched.forget();
                let limit = self.timing.heartbeat;
                match lease.mend(text, not_stuck, limit).await {
                    Ok(true) => tracing::warn!(
                        election = key,
                        holder = held.describe(),
                        runs_out_in_ms = limit.as_millis(),
                        "a stuck lease was given a time limit: nobody had renewed it for as long as a lease lasts"
                    ),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(election = key, error = %error, "cannot mend a stuck lease"),
                }
            }
        }
    }

    /// Logs `obstacle` when it is another one than the last.
    fn once(&mut self, obstacle: String, log: impl FnOnce(&str, &str)) {
        if self.last.as_ref() != Some(&obstacle) {
            log(&self.key, &obstacle);
            self.last = Some(obstacle);
        }
    }
}
