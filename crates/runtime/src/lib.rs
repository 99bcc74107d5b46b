//! Clocks, shutdown, backoff, loop vitals and secrets: what every process needs and no domain owns.

mod backoff;
mod clock;
mod gauge;
mod restart;
mod secret;
mod shutdown;
pub mod vitals;

pub use backoff::{Backoff, random_unit};
pub use clock::{BootTime, Clock, ManualClock, RealClock, boot_now};
pub use gauge::LeaderGauge;
pub use restart::{failpoint, restarting};
pub use secret::Secret;
pub use shutdown::{DrainError, Shutdown, SignalError};
pub use vitals::{Pulse, Vitals};
