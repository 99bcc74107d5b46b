//! Points at which a development build stops or aborts on purpose, for fault tests.
//!
//! `VOICEAI_FAILPOINT=op.<state>.<before|after>=abort|stop[@n]`: around the write of a state, at its n-th time. `stop` raises
//! SIGSTOP. A release build holds none of this, and refuses to start with the variable.

/// Where a point stands relative to the write of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The effect is done, its state not yet written.
    Before,
    /// The state is written.
    After,
}

#[cfg(debug_assertions)]
mod live {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use voiceai_scaler_core::State;

    use super::Side;

    #[derive(Debug)]
    struct Point {
        state: State,
        side: Side,
        abort: bool,
        countdown: AtomicU32,
    }

    static POINT: OnceLock<Option<Point>> = OnceLock::new();

    fn parse(text: &str) -> Option<Point> {
        let (place, action) = text.split_once('=')?;
        let mut parts = place.strip_prefix("op.")?.split('.');
        let state = State::parse(parts.next()?)?;
        let side = match parts.next()? {
            "before" => Side::Before,
            "after" => Side::After,
            _ => return None,
        };
        let (action, count) = action.split_once('@').unwrap_or((action, "1"));
        let abort = match action {
            "abort" => true,
            "stop" => false,
            _ => return None,
        };
        let count: u32 = count.parse().ok().filter(|count| *count > 0)?;
        parts.next().is_none().then(|| Point { state, side, abort, countdown: AtomicU32::new(count) })
    }

    pub(super) fn arm(text: Option<&str>) -> Result<(), String> {
        let point = match text {
            None => None,
            Some(text) => Some(parse(text).ok_or_else(|| {
                "one of op.<state>.<before|after>=abort|stop[@n], with a state of an operation".to_owned()
            })?),
        };
        let _ = POINT.set(point);
        Ok(())
    }

    pub(super) fn reached(state: State, side: Side) {
        let Some(Some(point)) = POINT.get() else { return };
        if point.state != state || point.side != side || point.countdown.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if point.abort {
            std::process::abort();
        }
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_agreed_form_is_a_point() {
            for state in State::ALL {
                for side in ["before", "after"] {
                    assert!(parse(&format!("op.{}.{side}=abort", state.as_str())).is_some());
                }
            }
            let point = parse("op.created.before=stop@3").expect("a point");
            assert_eq!((point.state, point.side, point.abort), (State::Created, Side::Before, false));
            assert_eq!(point.countdown.into_inner(), 3);
            for bad in [
                "",
                "op.created",
                "op.created.before",
                "op.nonsense.before=abort",
                "op.created.during=abort",
                "op.created.before=explode",
                "op.created.before=abort@0",
                "op.created.before=abort@x",
                "created.before=abort",
                "op.created.before.more=abort",
            ] {
                assert!(parse(bad).is_none(), "{bad}");
            }
        }
    }
}

/// Arms the point that the environment names.
///
/// # Errors
/// What was expected, when it names none; in a release build, whenever it is given.
pub fn arm(text: Option<&str>) -> Result<(), String> {
    // Those of loops are both services'.
    let text = text.filter(|text| !text.starts_with("worker."));
    #[cfg(debug_assertions)]
    return live::arm(text);
    #[cfg(not(debug_assertions))]
    match text {
        None => Ok(()),
        Some(_) => Err("no value at all: this is a release build, which has no failpoints".to_owned()),
    }
}

/// Stops here when told to.
#[cfg_attr(not(debug_assertions), allow(unused_variables, clippy::missing_const_for_fn))]
pub fn reached(state: voiceai_scaler_core::State, side: Side) {
    #[cfg(debug_assertions)]
    live::reached(state, side);
}
