use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::record::{Item, ItemState};
use crate::rule::judge_deaths;
use crate::store::{ReplayError, Store};

/// How long a silent runner keeps a replay from others. Renewed with every look.
const HOLD: Duration = Duration::from_secs(30);
/// Most items whose end is looked for in one call.
const LOOK_AT: i64 = 500;

/// What came of releasing one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// It is on its way.
    Released,
    /// It is not given up any more: released before, or by somebody else.
    NotGivenUp,
    /// It was left alone, for this reason.
    Skipped(String),
}

/// What became of a released item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not ended.
    Open,
    /// It ended well.
    Completed,
    /// It was given up again, for this reason.
    Died(String),
    /// Somebody removed it before it ended.
    Gone(String),
}

/// The domain's side of a replay.
pub trait Source: Sync {
    /// What its calls fail with. A failure interrupts the replay, which may be carried on later.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Puts one item back to be done. Called again for the same item when nobody knows whether the first call had its effect.
    fn release(&self, item: &Item) -> impl Future<Output = Result<Release, Self::Error>> + Send;

    /// What became of released items, in their order.
    fn outcomes(&self, items: &[Item]) -> impl Future<Output = Result<Vec<Outcome>, Self::Error>> + Send;
}

/// How fast, and how long the end is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Items released in each second.
    pub per_second: f64,
    /// How often released items are looked at.
    pub look_every: Duration,
    /// How long to go on looking once everything was released.
    pub follow: Duration,
}

/// Why [`run`] came back. What became of the items stands in the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything was released, and every item has ended.
    Settled,
    /// Everything was released; some items have not ended in the time given.
    Released,
    /// Too many died; the rest was left alone.
    TooManyDeaths(String),
    /// The caller wanted to stop. May be carried on.
    Interrupted,
}

/// A replay that could not be carried on. Call again to go on: every step so far is written down.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E: std::error::Error + 'static> {
    /// The rows.
    #[error(transparent)]
    Store(#[from] ReplayError),
    /// The domain.
    #[error("replay an item")]
    Source(#[source] E),
}

/// Carries out what is left of replay `id`: releases its items at the given rate, one by one, looks what becomes of them and
/// stops when too many die. `runner` names this process; while it runs no other can carry out the same replay.
///
/// # Errors
/// When the rows or the domain cannot be reached, or somebody else carries it out.
pub async fn run<S: Source>(
    store: &Store,
    source: &S,
    id: Uuid,
    runner: &str,
    pace: Pace,
    stop: &CancellationToken,
) -> Result<Stopped, RunError<S::Error>> {
    store.hold(id, runner, HOLD).await?;
    let run = Run { store, source, id, runner, pace };
    let ended = run.carry_out(stop).await;
    // A runner that cannot say goodbye is forgotten after `HOLD`.
    if let Err(error) = store.let_go(id, runner).await {
        tracing::warn!(%error, replay.id = %id, "the replay stays held for half a minute");
    }
    ended
}

struct Run<'a, S> {
    store: &'a Store,
    source: &'a S,
    id: Uuid,
    runner: &'a str,
    pace: Pace,
}

impl<S: Source> Run<'_, S> {
    async fn carry_out(&self, stop: &CancellationToken) -> Result<Stopped, RunError<S::Error>> {
        let replay = self.store.get(self.id).await?;
        let forgiven = u32::try_from(replay.deaths_forgiven).unwrap_or(0);
        if let Some(ended) = self.release_all(forgiven, stop).await? {
            return Ok(ended);
        }
        // The trail's counts hold what is known by then.
        self.settle().await?;
        self.store.end(self.id, None).await?;
        self.follow(stop).await
    }

    /// `None` once nothing is left to release.
    async fn release_all(
        &self,
        forgiven: u32,
        stop: &CancellationToken,
    ) -> Result<Option<Stopped>, RunError<S::Error>> {
        let every = Duration::from_secs_f64(1.0 / self.pace.per_second.clamp(0.001, 10_000.0));
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        loop {
            tokio::select! { biased; () = stop.cancelled() => return Ok(Some(Stopped::Interrupted)), _ = tick.tick() => {} }
            if looked.elapsed() >= self.pace.look_every {
                self.settle().await?;
                if let Some(reason) = judge_deaths(&self.store.deaths(self.id).await?, forgiven) {
                    self.store.end(self.id, Some(&reason)).await?;
                    return Ok(Some(Stopped::TooManyDeaths(reason)));
                }
                looked = Instant::now();
            }
            let next =
                self.store.items(self.id, &[ItemState::Releasing, ItemState::Pending], None, 1).await?;
            let Some(item) = next.first() else { return Ok(None) };
            self.release(item).await?;
        }
    }

    async fn release(&self, item: &Item) -> Result<(), RunError<S::Error>> {
        let unsure = item.state == ItemState::Releasing;
        if !unsure {
            self.store.mark(self.id, &[(item.position, ItemState::Releasing, None)]).await?;
        }
        let (state, detail) = match self.source.release(item).await.map_err(RunError::Source)? {
            Release::Released => (ItemState::Released, None),
            Release::NotGivenUp if unsure => (ItemState::Released, None),
            Release::NotGivenUp => (ItemState::Skipped, Some("it is not dead any more".to_owned())),
            Release::Skipped(why) => (ItemState::Skipped, Some(why)),
        };
        Ok(self.store.mark(self.id, &[(item.position, state, detail)]).await?)
    }

    /// Looks what became of released items and writes it down. Answers how many are still open.
    async fn settle(&self) -> Result<usize, RunError<S::Error>> {
        self.store.hold(self.id, self.runner, HOLD).await?;
        let (mut open, mut after) = (0, None);
        loop {
            let items = self.store.items(self.id, &[ItemState::Released], after, LOOK_AT).await?;
            let Some(last) = items.last() else { return Ok(open) };
            after = Some(last.position);
            let outcomes = self.source.outcomes(&items).await.map_err(RunError::Source)?;
            let marks: Vec<_> = items
                .iter()
                .zip(outcomes)
                .filter_map(|(item, outcome)| {
                    let (state, detail) = match outcome {
                        Outcome::Open => return None,
                        Outcome::Completed => (ItemState::Completed, None),
                        Outcome::Died(why) => (ItemState::Died, Some(why)),
                        Outcome::Gone(why) => (ItemState::Gone, Some(why)),
                    };
                    Some((item.position, state, detail))
                })
                .collect();
            open += items.len() - marks.len();
            self.store.mark(self.id, &marks).await?;
        }
    }

    async fn follow(&self, stop: &CancellationToken) -> Result<Stopped, RunError<S::Error>> {
        let until = Instant::now() + self.pace.follow;
        loop {
            if self.settle().await? == 0 {
                return Ok(Stopped::Settled);
            }
            if Instant::now() >= until {
                return Ok(Stopped::Released);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(Stopped::Released),
                () = tokio::time::sleep(self.pace.look_every) => {}
            }
        }
    }
}
