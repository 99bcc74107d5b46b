//! What the calls came to: leases, completions and lots, and what the desk makes of them.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use voiceai_redis::{RedisErrorKind, Str, Value};

use super::super::calls::{self, Called, Read, Took};
use super::super::lease::kind_of;
use super::super::run::Ended;
use super::super::take::{Answer, Incarnation, Lot, Standing, Taken};
use super::{Desk, returned};
use crate::envelope::FailRecord;
use crate::id::JobId;
use crate::library::text_of;
use crate::metrics;

impl Desk {
    pub(super) fn settle_call(&mut self, called: Called) {
        match called {
            Called::Joined { incarnation, result } => match result {
                Ok(()) => {
                    self.recovered();
                    self.leases.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&incarnation));
                    self.current = Some(incarnation);
                    self.hungry = true;
                }
                Err(error) => self.trouble(&error),
            },
            Called::Took(took) => self.took(*took),
            Called::Acked { acks, result } => match result {
                // The refused ones may have been applied by the call that had no answer: unknown, not stale.
                Ok(_refused) => {
                    self.recovered();
                    self.hungry = true;
                    for ended in acks {
                        self.confirmed(ended);
                    }
                }
                Err(error) => {
                    self.unsure.extend(acks);
                    self.trouble(&error);
                }
            },
            Called::Settled { verbs, result } => match result {
                Ok((owned, unanswered)) => {
                    self.recovered();
                    // It freed places that only a take can fill.
                    self.hungry = true;
                    let mut ends = Vec::new();
                    for (ended, owned) in verbs.into_iter().zip(owned) {
                        match owned {
                            Value::Integer(owned) if owned == 1 || unanswered > 0 => self.confirmed(ended),
                            Value::Array(answer) => {
                                ends.extend(answer.first().and_then(Value::as_i64));
                                self.cancelled(ended, answer.get(1).and_then(text_of).as_deref());
                            }
                            _ => self.refused(&ended),
                        }
                    }
                    self.write_ends(ends);
                }
                Err(error) => {
                    self.verbs.extend(verbs);
                    self.trouble(&error);
                }
            },
        }
    }

    fn took(&mut self, took: Took) {
        let Took { lot, want, acks, sent, result } = took;
        match result {
            Ok(answer) => {
                self.recovered();
                self.pace.called(self.call_began.elapsed());
                self.settle_acks(acks, &answer.stale);
                self.shared.client.time().learn(answer.now_ms);
                if answer.standing == Standing::Fenced {
                    self.lost(&lot.incarnation);
                    return;
                }
                lot.incarnation.renewed(sent);
                self.answered(&lot, want, answer);
            }
            Err(error) if error.outcome_unknown() || error.kind() == RedisErrorKind::BadReply => {
                // A lot may lie under this incarnation that nobody knows of: the heart gives it back.
                lot.incarnation.lose_lot(&lot.token);
                self.abandon(&lot.incarnation);
                self.unsure.extend(acks);
                self.trouble(&error);
            }
            Err(error) => {
                self.acks.extend(acks);
                self.trouble(&error);
            }
        }
    }

    fn settle_acks(&mut self, acks: Vec<Ended>, stale: &[String]) {
        for ended in acks {
            if stale.iter().any(|id| id == ended.id.as_str()) {
                self.refused(&ended);
            } else {
                self.confirmed(ended);
            }
        }
    }

    fn confirmed(&mut self, ended: Ended) {
        self.over(&ended);
        self.meter.ended(&ended.kind, ended.outcome);
        if let Some(record) = ended.record {
            self.shared.client.history().record(*record);
        }
    }

    /// It ended as cancelled: its handler stopped for that, or it would have come back and its cancellation had been asked
    /// for.
    fn cancelled(&mut self, ended: Ended, envelope: Option<&str>) {
        self.over(&ended);
        let kind = envelope.map_or_else(|| ended.kind.clone(), |envelope| kind_of(envelope).into());
        self.meter.ended(&kind, "cancelled");
    }

    /// Records of ends that Redis noted for us, beside the loop: the database may be slow.
    fn write_ends(&self, ends: Vec<i64>) {
        if !ends.is_empty() {
            let (client, queue) = (self.shared.client.clone(), self.shared.settings.name.clone());
            tokio::spawn(async move { client.write_ends(&queue, &ends).await });
        }
    }

    fn refused(&mut self, ended: &Ended) {
        self.over(ended);
        metrics::get().stale_acks(&self.shared.settings.name, 1);
        tracing::warn!(queue = %self.shared.settings.name, jobId = %ended.id, outcome = ended.outcome,
            "an acknowledgement was refused: the job is another worker's by now");
    }

    fn answered(&mut self, lot: &Arc<Lot>, want: usize, answer: Answer) {
        self.cancel(&answer.cancelled);
        self.override_slots = answer.concurrency.map(|n| n as usize);
        let got = answer.ids.len();
        lot.incarnation.opened(got);
        self.hungry = answer.standing != Standing::Paused
            && (answer.standing == Standing::WorkLeft || (want > 0 && got >= want));
        self.learn_suspects(answer.suspects);
        self.due = answer.next_due.map(|span| Instant::now() + span.max(Duration::from_millis(1)));
        if answer.envelopes.len() < got {
            self.reading += got;
            let link = Arc::clone(&self.shared.link);
            self.reads.push_back(Box::pin(calls::read(link, Arc::clone(lot), answer.ids, answer.fails)));
        } else {
            self.arrived(lot, answer.ids, answer.envelopes, answer.fails);
        }
    }

    /// The envelopes of a lot are here, or cannot be had.
    pub(super) fn read(&mut self, read: Read) {
        let Read { lot, ids, fails, result } = read;
        self.reading -= ids.len();
        match result {
            Ok(envelopes) if !lot.incarnation.is_lost() => self.arrived(&lot, ids, envelopes, fails),
            Err(error) if !lot.incarnation.is_lost() => {
                // Each goes back to the head of its lane, so the last one first.
                self.verbs.extend(ids.into_iter().rev().map(|id| returned(id, Arc::clone(&lot))));
                self.trouble(&error);
            }
            _ => {
                lot.incarnation.settled(ids.len());
                for id in &ids {
                    self.release_suspect(id);
                }
            }
        }
    }

    /// Takes no more under this lease: once what is known to lie under it is settled it is let go, and the rest of it
    /// goes back.
    fn abandon(&mut self, incarnation: &Arc<Incarnation>) {
        incarnation.retire();
        if self.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, incarnation)) {
            self.current = None;
        }
        self.release_unused_permit();
    }

    fn arrived(
        &mut self,
        lot: &Arc<Lot>,
        ids: Vec<JobId>,
        envelopes: Vec<Option<Str>>,
        mut fails: Vec<(String, FailRecord)>,
    ) {
        for (id, envelope) in ids.into_iter().zip(envelopes) {
            let fail = fails.iter().position(|(of, _)| of == id.as_str()).map(|i| fails.swap_remove(i).1);
            let lot = Arc::clone(lot);
            match envelope.filter(|envelope| !envelope.is_empty()) {
                Some(envelope) => self.buffer.push_back(Taken { id, envelope, fail, lot }),
                // Removed by somebody, or read from a server that is not the one that handed it out: the one that is
                // knows what to do with it.
                None => self.verbs.push(returned(id, lot)),
            }
        }
        self.moved = Instant::now();
        if self.stopping {
            self.give_back_buffered();
        }
    }
}
