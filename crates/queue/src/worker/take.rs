//! A lot and the answer to a take.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use voiceai_redis::{Str, Value};
use voiceai_runtime::{BootTime, boot_now};

use crate::envelope::{FailRecord, received, to_base36};
use crate::id::{JobId, random_text};
use crate::library::{Fields, Unexpected, text_of};

/// One lease of this process on one queue. A new one begins whenever it is not certain what the old one holds.
#[derive(Debug)]
pub(super) struct Incarnation {
    pub(super) name: Arc<str>,
    lots: AtomicU64,
    /// Jobs handed out under it that are not settled.
    open: AtomicI64,
    /// Takes nothing new; kept alive until what it holds is settled.
    retired: AtomicBool,
    /// Redis does not know it any more, or may not: what it holds is another's.
    lost: AtomicBool,
    /// When the last successful renewal was sent, ms since boot.
    renewed_ms: AtomicU64,
    /// Tokens of lots that were asked for and whose answer is missing.
    lost_lots: Mutex<Vec<Arc<str>>>,
}

impl Incarnation {
    pub(super) fn new(sent: BootTime) -> Self {
        Self {
            name: random_text::<10>().into(),
            lots: AtomicU64::new(0),
            open: AtomicI64::new(0),
            retired: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            renewed_ms: AtomicU64::new(sent.as_millis()),
            lost_lots: Mutex::default(),
        }
    }

    /// A token that nobody used before, not even before a failover.
    pub(super) fn next_lot(self: &Arc<Self>) -> Arc<Lot> {
        let number = self.lots.fetch_add(1, Ordering::Relaxed) + 1;
        let token = format!("{}.{}", self.name, to_base36(number)).into();
        Arc::new(Lot { token, incarnation: Arc::clone(self) })
    }

    pub(super) fn opened(&self, jobs: usize) {
        self.open.fetch_add(i64::try_from(jobs).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    pub(super) fn settled(&self, jobs: usize) {
        self.open.fetch_sub(i64::try_from(jobs).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.load(Ordering::Acquire) <= 0
    }

    /// No answer came to the take of this lot: what lies under its token is nobody's.
    pub(super) fn lose_lot(&self, token: &Arc<str>) {
        self.lost_lots.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(token));
    }

    pub(super) fn lost_lots(&self) -> Vec<Arc<str>> {
        self.lost_lots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Marks it lost; true the first time.
    pub(super) fn lose(&self) -> bool {
        self.retire();
        !self.lost.swap(true, Ordering::AcqRel)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// A renewal sent at `sent` succeeded. Counted from the sending: a slow answer never lengthens a lease.
    pub(super) fn renewed(&self, sent: BootTime) {
        self.renewed_ms.fetch_max(sent.as_millis(), Ordering::AcqRel);
    }

    /// True when the lease, less a margin to stop handlers in, has ended by this process's own clock.
    pub(super) fn has_lapsed(&self, lease: Duration) -> bool {
        let renewed = BootTime::from_millis(self.renewed_ms.load(Ordering::Acquire));
        boot_now().duration_since(renewed) > lease - lease / 5
    }
}

/// Jobs taken by one call; their token.
#[derive(Debug)]
pub(super) struct Lot {
    pub(super) token: Arc<str>,
    pub(super) incarnation: Arc<Incarnation>,
}

/// A job in this process's hands.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) id: JobId,
    pub(super) envelope: Str,
    pub(super) fail: Option<FailRecord>,
    pub(super) lot: Arc<Lot>,
}

/// What the server thinks of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The incarnation is not known: join anew.
    Fenced,
    /// Leased; nothing more is ready, as far as this call saw.
    Leased,
    /// The queue is paused.
    Paused,
    /// Leased, and more work is ready.
    WorkLeft,
}

/// What a take says of suspects: jobs that were in a worker's hands when it died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Suspects {
    /// None for this worker now.
    None,
    /// Some wait, and the call was made without the right to one.
    Wait,
    /// This one is in the lot.
    Taken(JobId),
}

/// The answer to a take.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) standing: Standing,
    pub(super) now_ms: i64,
    /// How long until something is due, as the server's clock says.
    pub(super) next_due: Option<Duration>,
    pub(super) stale: Vec<String>,
    pub(super) cancelled: Vec<String>,
    pub(super) ids: Vec<JobId>,
    /// Empty, or one per id; `None` where the job is gone.
    pub(super) envelopes: Vec<Option<Str>>,
    pub(super) fails: Vec<(String, FailRecord)>,
    pub(super) concurrency: Option<u32>,
    pub(super) suspects: Suspects,
}

impl Answer {
    /// Reads the answer to the take of `token`. An answer to another call means that the connection lost one.
    pub(super) fn read(reply: Value, token: &str) -> Result<Self, Unexpected> {
        let mut f = Fields::of(reply)?;
        if f.text()?.as_deref() != Some(token) {
            return Err(Unexpected("the answer to this very call"));
        }
        let standing = match f.integer()? {
            0 => Standing::Fenced,
            1 => Standing::Leased,
            2 => Standing::Paused,
            3 => Standing::WorkLeft,
            _ => return Err(Unexpected("a standing from 0 to 3")),
        };
        let now_ms = f.integer()?;
        let due = f.integer()?;
        let next_due = (due >= 0).then(|| Duration::from_millis(u64::try_from(due - now_ms).unwrap_or(0)));
        let stale = f.texts()?;
        let cancelled = f.texts()?;
        let ids =
            f.values()?.into_iter().filter_map(Value::into_bytes_str).map(|id| JobId::trusted(&id)).collect();
        let envelopes = f.values()?.into_iter().map(received).collect();
        let flat = f.texts()?;
        let fails = flat.chunks_exact(2).map(|p| (p[0].clone(), FailRecord::parse(&p[1]))).collect();
        let concurrency = u32::try_from(f.integer()?).ok();
        // An id is a text, also where it looks like a number.
        let suspects = match f.next()? {
            Value::Integer(0) => Suspects::None,
            Value::Integer(_) => Suspects::Wait,
            other => Suspects::Taken(JobId::trusted(&text_of(&other).unwrap_or_default())),
        };
        Ok(Self {
            standing,
            now_ms,
            next_due,
            stale,
            cancelled,
            ids,
            envelopes,
            fails,
            concurrency,
            suspects,
        })
    }
}
