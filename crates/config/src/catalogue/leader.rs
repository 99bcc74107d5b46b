//! Leader election.

use std::time::Duration;

use crate::setting::{Binaries, settings};
use crate::value::kinds::{millis, text};

settings! {
    "Leader election", "One process of each service leads; the others stand by. `LEADER_LOCK_TTL_MS` must be at least twice `LEADER_HEARTBEAT_INTERVAL_MS`.";

    /// Redis key that holds the leading scaler. Operators read it with GET.
    LEADER_ELECTION_KEY: String = text().default("voiceai:scaler:leader").only(Binaries::Scaler);
    /// Redis key that holds the leading tasker.
    TASKER_LEADER_ELECTION_KEY: String = text().default("voiceai:tasker:leader").only(Binaries::Tasker);
    /// How often the leader renews its lease and a follower looks whether it is free.
    LEADER_HEARTBEAT_INTERVAL_MS: Duration = millis().default("5000").between(50, 600_000);
    /// How long a lease lasts unless it is renewed: also how long a killed leader is missed.
    LEADER_LOCK_TTL_MS: Duration = millis().default("10000").between(100, 3_600_000);
}
