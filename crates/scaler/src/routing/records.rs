//! What should be in Kamailio's dispatcher set, from the rows alone.

use std::collections::HashSet;
use std::net::IpAddr;

use voiceai_scaler_core::{Kind, Operation, ServerStatus, Service, State};

use crate::store::{FleetRow, ServerRow};

/// Kamailio's flags of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flags {
    /// 9: inactive and probed. A new server gets no call before it has answered.
    Entering,
    /// 8: active and probed.
    Serving,
    /// 12: disabled and probed. Survives a reload, unlike a state set by command.
    Draining,
}

impl Flags {
    pub(super) const fn number(self) -> &'static str {
        match self {
            Self::Entering => "9",
            Self::Serving => "8",
            Self::Draining => "12",
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The server's name, the tail of the key.
    pub name: String,
    /// The dispatcher set.
    pub setid: u32,
    /// The SIP URI.
    pub destination: String,
    /// Its flags.
    pub flags: Flags,
    /// Its priority.
    pub priority: i64,
}

/// What should be in Redis.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Records {
    /// Records to be there.
    pub put: Vec<Record>,
    /// Names whose records must not be there.
    pub remove: Vec<String>,
}

/// The flags of a server in a state; `None`: it has no record.
#[must_use]
pub const fn flags(operation: Option<Operation>) -> Option<Flags> {
    use State as S;
    let Some(operation) = operation else { return Some(Flags::Serving) };
    match (operation.kind, operation.state) {
        (Kind::Up, S::Routed) => Some(Flags::Entering),
        (Kind::Up, S::Done) | (Kind::Down, S::Planned | S::Preflight | S::Cancelled) => Some(Flags::Serving),
        (Kind::Down, S::Unrouted | S::Draining | S::Drained | S::Forced | S::Cancelling) => {
            Some(Flags::Draining)
        }
        _ => None,
    }
}

/// The record of a server; `None` when it is no voice server or has no address yet.
#[must_use]
pub fn record(server: &ServerRow, flags: Flags) -> Option<Record> {
    if server.service != Service::Voice {
        return None;
    }
    let address: IpAddr = server.private_ip.as_deref().or(server.ip.as_deref())?.parse().ok()?;
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let wanted = &server.spec.dispatcher;
    let mut destination = format!("sip:{host}:{}", wanted.port);
    if wanted.transport != "udp" {
        destination.push_str(";transport=");
        destination.push_str(&wanted.transport);
    }
    Some(Record {
        name: server.name.clone(),
        setid: wanted.setid,
        destination,
        flags,
        priority: server.spec.priority,
    })
}

/// The record that a row asks for; `None`: there must be none.
#[must_use]
pub fn wanted(row: &FleetRow) -> Option<Record> {
    record(&row.server, wanted_flags(row)?)
}

/// True for a server that should have a record and whose address is not known: the record that it may have is left as it is,
/// since nothing says that its calls should go elsewhere.
#[must_use]
pub fn is_unaddressed(row: &FleetRow) -> bool {
    row.server.service == Service::Voice && wanted_flags(row).is_some() && wanted(row).is_none()
}

fn wanted_flags(row: &FleetRow) -> Option<Flags> {
    match row.state() {
        // A server without an operation that is not in service is kept for a person, out of routing.
        None if row.server.status != ServerStatus::Active => None,
        state => flags(state),
    }
}

/// What the rows say should be in Redis: a record for each voice server in or on its way out of service, none for the
/// others of ours. Records of names we never had are not ours to touch.
#[must_use]
pub fn records(fleet: &[FleetRow], gone: impl IntoIterator<Item = String>) -> Records {
    let mut records = Records::default();
    let names: HashSet<&str> = fleet.iter().map(|row| row.server.name.as_str()).collect();
    records.remove.extend(gone.into_iter().filter(|name| !names.contains(name.as_str())));
    for row in fleet {
        match wanted(row) {
            Some(record) => records.put.push(record),
            None if is_unaddressed(row) => {
                tracing::warn!(
                    server = row.server.name,
                    "in service without an address; its routing record is left as it is"
                );
            }
            None => records.remove.push(row.server.name.clone()),
        }
    }
    records
}
