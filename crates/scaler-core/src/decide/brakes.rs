//! What delays a direction: consecutive periods, stabilisation, cooldown.

use jiff::{SignedDuration, Timestamp};

use super::Draft;

/// True when this and the `periods - 1` evaluations before it all breached.
pub(super) fn lasted(draft: &Draft<'_>, periods: u32, breached: impl Fn(f64) -> bool) -> bool {
    let before = usize::try_from(periods.saturating_sub(1)).unwrap_or(usize::MAX);
    let mut past = draft.group.history.iter().rev();
    (0..before).all(|_| past.next().and_then(|sample| sample.utilisation).is_some_and(&breached))
}

/// The wishes of the last `window`, this one included.
pub(super) fn wishes<'a>(draft: &'a Draft<'_>, window: SignedDuration) -> impl Iterator<Item = u32> + 'a {
    let since = draft.now - window;
    draft
        .group
        .history
        .iter()
        .filter(move |sample| sample.at > since)
        .map(|sample| sample.wish)
        .chain([draft.wish])
}

/// When the rest after the last action ends, if it has not.
///
/// Counted from the decision, in both directions, and from stored times: a change of leader does not shorten it. An
/// action that lies in the future (a clock was set back) counts as taken now, so that it cannot hold a group for ever.
pub(super) fn cooldown(draft: &Draft<'_>, rest: SignedDuration) -> Option<Timestamp> {
    let last = draft.group.last_up.max(draft.group.last_down)?.min(draft.now);
    let until = last.checked_add(rest).ok()?;
    (draft.now < until).then_some(until)
}
