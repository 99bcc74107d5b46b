//! `webhook …`

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;
use voiceai_cli::{Mutation, duration_arg};

use super::common::{Page, PerSecond, When};

/// `webhook …`
#[derive(Debug, Subcommand)]
pub enum Webhook {
    /// Endpoints: list, add, rotate a secret, enable, disable, remove
    Endpoints(Endpoints),
    /// Deliveries, newest first; or one with its attempts
    Deliveries(ListDeliveries),
    /// Post a probe to an endpoint and show what it answers; with --resend its dead deliveries follow when it takes the probe
    Test(TestEndpoint),
    /// Send dead deliveries back; shows a plan unless --execute is given
    Replay(ReplayWebhooks),
}

/// `webhook endpoints`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Endpoints {
    /// What to do; without it: list them
    #[command(subcommand)]
    pub command: Option<EndpointsCommand>,
    /// Only this tenant's
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Which part of the list.
    #[command(flatten)]
    pub page: Page,
}

/// `webhook endpoints …`
#[derive(Debug, Subcommand)]
pub enum EndpointsCommand {
    /// Make an endpoint; its secret is shown this once
    Add {
        /// Whose
        #[arg(long, value_name = "T")]
        tenant: String,
        /// Where events are posted to
        #[arg(long)]
        url: String,
        /// Patterns of the events it wants, such as call.*; every event where none is given
        #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
        events: Vec<String>,
        /// For people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Deliveries at a time
        #[arg(long, value_name = "N")]
        concurrency: Option<u32>,
        /// Longest time to an answer
        #[arg(long, value_name = "D", value_parser = duration_arg)]
        timeout: Option<Duration>,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Give an endpoint a new secret, shown this once; the old one signs beside it for WEBHOOK_SECRET_GRACE
    Rotate(OneEndpoint),
    /// Let an endpoint have events again
    Enable(OneEndpoint),
    /// Post nothing more to an endpoint; what waits for it is dead and may be replayed
    Disable(OneEndpoint),
    /// Remove an endpoint with its deliveries
    Remove(OneEndpoint),
}

/// One endpoint, to be changed.
#[derive(Debug, Args)]
pub struct OneEndpoint {
    /// Its id
    pub id: Uuid,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeliveryState {
    /// To be posted
    Waiting,
    /// An attempt is under way
    Active,
    /// The endpoint took it
    Delivered,
    /// Given up
    Dead,
}

impl DeliveryState {
    /// As rows hold it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Active => "active",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

/// Which deliveries.
#[derive(Debug, Clone, Args)]
pub struct SelectDeliveries {
    /// Only to this endpoint
    #[arg(long, value_name = "ID")]
    pub endpoint: Option<Uuid>,
    /// Only this tenant's
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub event_type: Option<String>,
    /// Only where what went wrong last holds this text
    #[arg(long, value_name = "TEXT")]
    pub error_contains: Option<String>,
    /// Only since then: a time or how long ago
    #[arg(long, value_name = "T")]
    pub since: Option<When>,
}

/// `webhook deliveries`
#[derive(Debug, Args)]
pub struct ListDeliveries {
    /// One delivery, with its attempts
    pub id: Option<Uuid>,
    /// Only those that stand here
    #[arg(long, value_enum)]
    pub state: Option<DeliveryState>,
    /// Which.
    #[command(flatten)]
    pub select: SelectDeliveries,
    /// Which part of the list.
    #[command(flatten)]
    pub page: Page,
}

/// `webhook test`
#[derive(Debug, Args)]
pub struct TestEndpoint {
    /// The endpoint
    pub id: Uuid,
    /// Replay its dead deliveries when it takes the probe
    #[arg(long)]
    pub resend: bool,
    /// How many of them; more than 10 need a small batch first of which every one was delivered
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub limit: u32,
    /// Most deliveries in a period
    #[arg(long, value_name = "N/s", default_value = "5/s")]
    pub rate: PerSecond,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// `webhook replay`
#[derive(Debug, Args)]
pub struct ReplayWebhooks {
    /// Ids of deliveries
    #[arg(value_name = "ID")]
    pub ids: Vec<Uuid>,
    /// Which.
    #[command(flatten)]
    pub select: SelectDeliveries,
    /// Most deliveries; more than 10 need a small batch first of which every one was delivered
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub limit: u32,
    /// Most deliveries in a period
    #[arg(long, value_name = "N/s", default_value = "5/s")]
    pub rate: PerSecond,
    /// Really do it
    #[arg(long)]
    pub execute: bool,
    /// Go on with a replay that stopped or was interrupted
    #[arg(long, value_name = "REPLAY", conflicts_with_all = ["ids", "endpoint", "tenant", "event_type", "error_contains", "since", "limit"])]
    pub resume: Option<Uuid>,
    /// How long to watch what becomes of the deliveries once all are on their way
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration_arg)]
    pub wait: Duration,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}
