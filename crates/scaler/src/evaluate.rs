//! One evaluation: the world read into group states, and a decision for each. Nothing is changed here; `plan` does the same.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use voiceai_scaler_core::decide::CALM_AFTER_PANIC;
use voiceai_scaler_core::fleet::{Hold, Limits, Phase};
use voiceai_scaler_core::{
    Decision, GroupState, Policy, PolicyError, Reading, Sample, Server, ServerStatus, Unmanaged, Violation,
    decide,
};

use crate::heartbeats::{HeartbeatReader, Heartbeats};
use crate::store::{FleetRow, GroupStanding, HoldKind, Pause, ProviderHold, Store, StoreError};

/// How far back an evaluation remembers at most.
pub const MEMORY: SignedDuration = SignedDuration::from_hours(2);
/// How long the first look for servers of others may hold up the first evaluation.
const WALK_WITHIN: std::time::Duration = std::time::Duration::from_millis(500);
/// Most past evaluations remembered of one group.
const SAMPLES_MAX: usize = 2_000;

/// What is read once per evaluation, whatever the number of groups and servers.
#[derive(Debug)]
pub struct Snapshot {
    /// The database's clock.
    pub now: Timestamp,
    /// Groups that can be acted on.
    pub policies: Vec<Policy>,
    /// Groups that cannot, and why.
    pub invalid: Vec<PolicyError>,
    /// Servers that are not gone, with their open operations.
    pub fleet: Vec<FleetRow>,
    /// What is remembered of each group, by its id.
    pub standings: HashMap<String, GroupStanding>,
    /// Pauses, by the group's name or `*`.
    pub pauses: HashMap<String, Pause>,
    /// What providers are not asked for.
    pub holds: Vec<ProviderHold>,
    /// Names that rest.
    pub resting: BTreeSet<String>,
    /// Heartbeats.
    pub heartbeats: Heartbeats,
}

/// What the leader remembers between evaluations. Losing it costs only time.
#[derive(Debug, Default)]
pub struct Recollection {
    history: HashMap<String, VecDeque<Sample>>,
    silent_since: HashMap<String, Timestamp>,
    unmanaged: HashMap<String, Vec<Unmanaged>>,
}

/// One group's evaluation.
#[derive(Debug)]
pub struct Evaluation {
    /// The group's policy.
    pub policy: Policy,
    /// What was decided by.
    pub state: GroupState,
    /// What was decided.
    pub decision: Decision,
}

impl Snapshot {
    /// Reads everything: a fixed number of queries, and one round trip to Redis for all heartbeats.
    ///
    /// # Errors
    /// As the database says. Heartbeats that cannot be read are no error: the groups are then blind.
    pub async fn read(store: &Store, heartbeats: &HeartbeatReader) -> Result<Self, StoreError> {
        let (now, groups, fleet, standings, pauses, holds, resting) = tokio::try_join!(
            store.now(),
            store.groups(),
            store.fleet(),
            store.standings(),
            store.pauses(),
            store.provider_holds(),
            store.resting_names(),
        )?;
        heartbeats.know(fleet.iter().map(|row| row.server.name.clone()));
        let names = fleet.iter().map(|row| row.server.name.clone()).collect();
        let heartbeats = match heartbeats.read_beside_a_walk(names, WALK_WITHIN).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "heartbeats cannot be read: no group is judged by them");
                Heartbeats::unreadable()
            }
        };
        let mut policies = Vec::with_capacity(groups.len());
        let mut invalid = Vec::new();
        for group in groups {
            match Policy::read(&group.0) {
                Ok(policy) => policies.push(policy),
                Err(error) => invalid.push(error),
            }
        }
        refuse_duplicates(&mut policies, &mut invalid);
        Ok(Self { now, policies, invalid, fleet, standings, pauses, holds, resting, heartbeats })
    }

    /// How far back the groups' policies look, between two evaluations of `every`: nothing at all by default.
    #[must_use]
    pub fn looks_back(&self, every: SignedDuration) -> SignedDuration {
        self.policies
            .iter()
            .map(|policy| {
                let periods =
                    i32::try_from(policy.periods_up.max(policy.periods_down) - 1).unwrap_or(i32::MAX);
                let periods = every.checked_mul(periods).map_or(MEMORY, |span| span * 2);
                let calm = policy.panic_at.map_or(SignedDuration::ZERO, |_| CALM_AFTER_PANIC);
                periods.max(policy.stabilise_up).max(policy.stabilise_down).max(calm)
            })
            .max()
            .unwrap_or(SignedDuration::ZERO)
            .min(MEMORY)
    }

    /// Servers that are failed and on which no operation works: kept until a person has looked.
    #[must_use]
    pub fn left_to_a_person(&self) -> Vec<String> {
        let left = |row: &&FleetRow| row.operation.is_none() && row.server.status == ServerStatus::Failed;
        self.fleet.iter().filter(left).map(|row| row.server.name.clone()).collect()
    }

    /// Names that may not be given to a new server.
    #[must_use]
    pub fn taken(&self) -> BTreeSet<String> {
        let mut taken = self.resting.clone();
        taken.extend(self.fleet.iter().map(|row| row.server.name.clone()));
        taken.extend(self.heartbeats.names().map(str::to_owned));
        taken
    }
}

/// The platform keeps names unique; should two rows share one after all, neither can be told from the other by its servers.
fn refuse_duplicates(policies: &mut Vec<Policy>, invalid: &mut Vec<PolicyError>) {
    let mut count: HashMap<String, u32> = HashMap::new();
    for policy in policies.iter() {
        *count.entry(policy.name.clone()).or_default() += 1;
    }
    policies.retain(|policy| {
        let unique = count.get(&policy.name).is_none_or(|count| *count == 1);
        if !unique {
            invalid.push(PolicyError {
                group: policy.name.clone(),
                violations: vec![Violation { field: "name".to_owned(), problem: "is not unique".to_owned() }],
            });
        }
        unique
    });
}

impl Recollection {
    /// Takes over what earlier evaluations wrote down.
    #[must_use]
    pub fn from_past(samples: Vec<(String, Sample)>) -> Self {
        let mut this = Self::default();
        for (group, sample) in samples {
            this.history.entry(group).or_default().push_back(sample);
        }
        this
    }

    /// Decides about every group of a snapshot. `fleet_max`: most servers over all groups.
    pub fn evaluate(
        &mut self,
        snapshot: &Snapshot,
        stale_after: SignedDuration,
        fleet_max: Option<u32>,
        held: Option<&str>,
    ) -> Vec<Evaluation> {
        let mut room = fleet_max.map(|max| max.saturating_sub(to_u32(snapshot.fleet.len())));
        let mut by_group: HashMap<&str, Vec<&FleetRow>> = HashMap::new();
        for row in &snapshot.fleet {
            by_group.entry(&row.server.group_id).or_default().push(row);
        }
        let ours: HashSet<&str> = snapshot.fleet.iter().map(|row| row.server.name.as_str()).collect();
        let mut unmanaged = self.unmanaged(snapshot, &ours, stale_after);
        self.silent_since.retain(|name, _| ours.contains(name.as_str()));
        let groups: BTreeSet<&str> = snapshot.policies.iter().map(|policy| policy.id.as_str()).collect();
        self.history.retain(|group, _| groups.contains(group.as_str()));
        snapshot
            .policies
            .iter()
            .map(|policy| {
                let rows = by_group.get(policy.id.as_str()).map(Vec::as_slice).unwrap_or_default();
                let servers = rows.iter().filter_map(|row| self.server(row, snapshot, stale_after)).collect();
                let standing = snapshot.standings.get(&policy.id).cloned().unwrap_or_default();
                let state = GroupState {
                    servers,
                    unmanaged: unmanaged.remove(&policy.name).unwrap_or_default(),
                    unreadable: snapshot.heartbeats.unreadable,
                    last_up: standing.last_up_at,
                    last_down: standing.last_down_at,
                    history: self.history(&policy.id, snapshot.now),
                    limits: limits(policy, &standing, snapshot, room, held),
                };
                let decision = decide(&state, policy, snapshot.now);
                if let (Some(room), voiceai_scaler_core::Action::Add { create, .. }) =
                    (&mut room, &decision.action)
                {
                    *room = room.saturating_sub(*create);
                }
                self.remember(&policy.id, decision.sample(snapshot.now));
                Evaluation { policy: policy.clone(), state, decision }
            })
            .collect()
    }

    /// Servers in service from which nothing was heard for at least `since`, by the last evaluation.
    #[must_use]
    pub fn silent(&self, now: Timestamp, since: SignedDuration) -> Vec<String> {
        self.silent_since.iter().filter(|(_, at)| **at + since <= now).map(|(name, _)| name.clone()).collect()
    }

    fn server(&mut self, row: &FleetRow, snapshot: &Snapshot, stale_after: SignedDuration) -> Option<Server> {
        let phase = row.phase()?;
        // By the name of its making: a group that is renamed has servers that know the old one.
        let reading =
            snapshot.heartbeats.of(&row.server.name, &row.server.group_name, snapshot.now, stale_after);
        let silent_for = match &reading {
            Reading::Unknown(_) if phase == Phase::Active && !snapshot.heartbeats.unreadable => {
                let since = *self.silent_since.entry(row.server.name.clone()).or_insert(snapshot.now);
                snapshot.now.duration_since(since)
            }
            Reading::Known(_) => {
                self.silent_since.remove(&row.server.name);
                SignedDuration::ZERO
            }
            Reading::Unknown(_) => SignedDuration::ZERO,
        };
        Some(Server {
            name: row.server.name.clone(),
            phase,
            reading,
            silent_for,
            created_at: row.server.in_service_at.unwrap_or(row.server.created_at),
            protected_until: row.server.protected_until,
        })
    }

    /// Fresh heartbeats under names we did not create, by the group they name. While heartbeats cannot be read, those seen
    /// last still count: a server of others does not vanish with our view of it.
    fn unmanaged(
        &mut self,
        snapshot: &Snapshot,
        ours: &HashSet<&str>,
        stale_after: SignedDuration,
    ) -> HashMap<String, Vec<Unmanaged>> {
        if snapshot.heartbeats.unreadable {
            return self.unmanaged.clone();
        }
        let services: HashMap<&str, &str> =
            snapshot.policies.iter().map(|policy| (policy.name.as_str(), policy.service.as_str())).collect();
        let mut found: HashMap<String, Vec<Unmanaged>> = HashMap::new();
        for name in snapshot.heartbeats.names().filter(|name| !ours.contains(name)) {
            if let Reading::Known(beat) = snapshot.heartbeats.any(name, snapshot.now, stale_after)
                && let Some(group) = beat.group.clone()
                && let Some(service) = services.get(group.as_str())
                && beat.service.as_deref().is_none_or(|its| its == *service)
            {
                found.entry(group).or_default().push(Unmanaged { name: name.to_owned(), beat });
            }
        }
        for list in found.values_mut() {
            list.sort_by(|a, b| a.name.cmp(&b.name));
        }
        self.unmanaged.clone_from(&found);
        found
    }

    fn history(&mut self, group: &str, now: Timestamp) -> Vec<Sample> {
        let Some(samples) = self.history.get_mut(group) else { return Vec::new() };
        while samples.len() > SAMPLES_MAX || samples.front().is_some_and(|sample| sample.at + MEMORY < now) {
            samples.pop_front();
        }
        samples.iter().copied().collect()
    }

    fn remember(&mut self, group: &str, sample: Sample) {
        self.history.entry(group.to_owned()).or_default().push_back(sample);
    }
}

fn limits(
    policy: &Policy,
    standing: &GroupStanding,
    snapshot: &Snapshot,
    fleet_room: Option<u32>,
    held: Option<&str>,
) -> Limits {
    let pause = snapshot.pauses.get(&policy.name).or_else(|| snapshot.pauses.get("*"));
    let paused = match (held, pause) {
        (Some(why), _) => Some(Hold { why: why.to_owned(), until: None }),
        (None, Some(pause)) => Some(Hold {
            why: format!("paused by {}: {}", pause.actor, pause.reason),
            until: Some(pause.until),
        }),
        (None, None) => None,
    };
    let no_creates = standing
        .no_creates
        .as_ref()
        .filter(|(until, _)| *until > snapshot.now)
        .map(|(until, why)| Hold { why: why.clone(), until: Some(*until) })
        .or_else(|| rate_limit(policy, snapshot));
    Limits { fleet_room, creates_last_hour: standing.creates_last_hour, paused, no_creates }
}

/// A rate limit is the project's: it holds for every group of the provider.
fn rate_limit(policy: &Policy, snapshot: &Snapshot) -> Option<Hold> {
    let of_provider = |hold: &&ProviderHold| {
        hold.kind == HoldKind::RateLimit && policy.provider.as_deref() == Some(hold.provider.as_str())
    };
    let hold = snapshot.holds.iter().filter(of_provider).find(|hold| hold.until > snapshot.now)?;
    Some(Hold { why: format!("{}: {}", hold.provider, hold.why), until: Some(hold.until) })
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
