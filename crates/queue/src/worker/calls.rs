//! The calls a pool makes on its line: at most one is under way at a time.

use std::sync::Arc;

use voiceai_redis::{RedisError, RedisErrorKind, Str, Value};
use voiceai_runtime::{BootTime, boot_now};

use super::run::{Ended, Settle};
use super::take::{Answer, Incarnation, Lot};
use crate::attempt::Link;
use crate::envelope::FailRecord;
use crate::id::JobId;
use crate::library::{Unexpected, extend_texts};

/// A lot of up to this many jobs comes with its envelopes; for a larger one they are read apart, as every byte that
/// passes through Lua costs time.
const ENVELOPES_INSIDE: i64 = 16;

/// What a call came to, with everything it carried.
pub(super) enum Called {
    Joined {
        incarnation: Arc<Incarnation>,
        result: Result<(), RedisError>,
    },
    Took(Box<Took>),
    /// Plain completions that went by themselves.
    Acked {
        acks: Vec<Ended>,
        result: Result<Vec<String>, RedisError>,
    },
    /// Everything else; 1, 0 or the envelope of a job that was cancelled instead per entry, and how many sendings had no
    /// answer.
    Settled {
        verbs: Vec<Ended>,
        result: Result<(Vec<Value>, u32), RedisError>,
    },
}

pub(super) struct Took {
    pub(super) lot: Arc<Lot>,
    pub(super) want: usize,
    pub(super) acks: Vec<Ended>,
    pub(super) sent: BootTime,
    pub(super) result: Result<Answer, RedisError>,
}

pub(super) async fn join(link: Arc<Link>, lease_ms: i64, info: String, rate: String) -> Called {
    let incarnation = Arc::new(Incarnation::new(boot_now()));
    let args: Vec<Value> = vec![(&*incarnation.name).into(), lease_ms.into(), info.into(), rate.into()];
    let result: Result<Value, _> = link.library.call(&link.queue, "voiceai_v1_join", args).await;
    Called::Joined { incarnation, result: result.map(drop) }
}

/// Groups plain completions by token: token, count, ids.
fn ack_args(args: &mut Vec<Value>, acks: &[Ended]) {
    let mut rest = acks;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|e| Arc::ptr_eq(&e.lot, &first.lot)).count();
        args.push((&*first.lot.token).into());
        args.push(i64::try_from(same).unwrap_or(0).into());
        extend_texts(args, rest[..same].iter().map(|e| e.id.as_str()));
        rest = &rest[same..];
    }
}

pub(super) async fn take(
    link: Arc<Link>,
    incarnation: Arc<Incarnation>,
    lease_ms: i64,
    want: usize,
    may_suspect: bool,
    mut acks: Vec<Ended>,
) -> Called {
    let lot = incarnation.next_lot();
    // Neighbours of one lot share a group, so that a call carries few tokens.
    acks.sort_by(|a, b| a.lot.token.cmp(&b.lot.token));
    let make = || {
        let mut args: Vec<Value> = Vec::with_capacity(acks.len() + 16);
        args.push((&*incarnation.name).into());
        args.push(lease_ms.into());
        args.push(i64::try_from(want).unwrap_or(0).into());
        args.push((&*lot.token).into());
        args.push(ENVELOPES_INSIDE.into());
        args.push(i64::from(may_suspect).into());
        ack_args(&mut args, &acks);
        args
    };
    let sent = boot_now();
    let reply: Result<Value, _> = link.library.call_once_made(&link.queue, "voiceai_v1_take", &make).await;
    let result = reply.and_then(|reply| Answer::read(reply, &lot.token).map_err(|e| bad_reply(&e)));
    if matches!(&result, Err(e) if e.kind() == RedisErrorKind::BadReply) {
        link.library.distrust().await;
    }
    Called::Took(Box::new(Took { lot, want, acks, sent, result }))
}

/// A lot that came without its envelopes, and what reading them came to.
pub(super) struct Read {
    pub(super) lot: Arc<Lot>,
    pub(super) ids: Vec<JobId>,
    pub(super) fails: Vec<(String, FailRecord)>,
    pub(super) result: Result<Vec<Option<Str>>, RedisError>,
}

pub(super) async fn read(
    link: Arc<Link>,
    lot: Arc<Lot>,
    ids: Vec<JobId>,
    fails: Vec<(String, FailRecord)>,
) -> Read {
    let result = link.library.envelopes(&link.queue, &ids).await;
    Read { lot, ids, fails, result }
}

fn bad_reply(error: &Unexpected) -> RedisError {
    RedisError::new(RedisErrorKind::BadReply, "voiceai_v1_take", error.to_string())
}

pub(super) async fn ack(link: Arc<Link>, mut acks: Vec<Ended>) -> Called {
    acks.sort_by(|a, b| a.lot.token.cmp(&b.lot.token));
    let make = || {
        let mut args = Vec::with_capacity(acks.len() + 8);
        ack_args(&mut args, &acks);
        args
    };
    let result = link.library.call_made(&link.queue, "voiceai_v1_ack", &make).await;
    Called::Acked { acks, result }
}

pub(super) async fn settle(link: Arc<Link>, verbs: Vec<Ended>) -> Called {
    let mut args: Vec<Value> = Vec::with_capacity(verbs.len() * 5);
    for ended in &verbs {
        let (verb, a, b) = match &ended.settle {
            Settle::Verb { verb, a, b } => (*verb, a.as_str(), b.as_str()),
            // Neither comes here; giving a job back is the harmless answer.
            Settle::Ack | Settle::Nothing => ("back", "", ""),
        };
        args.push(ended.id.as_str().into());
        args.push((&*ended.lot.token).into());
        args.push(verb.into());
        args.push(a.into());
        args.push(b.into());
    }
    let result = link.library.call_counted(&link.queue, "voiceai_v1_settle", &|| args.clone()).await;
    Called::Settled { verbs, result }
}
