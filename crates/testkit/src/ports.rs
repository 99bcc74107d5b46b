//! Ports for servers that a test starts itself.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};

/// Below the range that the kernel uses for outgoing connections, so that a server which is stopped for a moment finds its
/// port free again. The private stack chooses from the same range (`scripts/stack/lib.sh`).
const RANGE: std::ops::RangeInclusive<u16> = 20_000..=31_999;

/// A TCP port on 127.0.0.1 that this process alone uses, until dropped: also while no server listens on it.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Held locked; other test processes skip a port whose file is locked.
    _reservation: File,
}

impl Port {
    /// Reserves a free port.
    #[must_use]
    pub fn reserve() -> Self {
        let directory = std::env::temp_dir().join(format!("voiceai-ports-{}", nix::unistd::getuid()));
        fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("create {}: {error}", directory.display()));
        for _ in 0..500 {
            let number =
                RANGE.start() + u16::try_from(random() % u64::from(RANGE.end() - RANGE.start())).unwrap();
            let Ok(reservation) = File::create(directory.join(number.to_string())) else { continue };
            if reservation.try_lock().is_err() {
                continue;
            }
            // Free right now? The listener is closed again at once; the lock keeps other tests away from it.
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _reservation: reservation };
            }
        }
        panic!("no free port in {RANGE:?}");
    }

    /// The port's number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }
}

/// A number that differs between processes and calls; std seeds its hasher from the kernel.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
