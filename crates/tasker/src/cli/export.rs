//! `export …`

use clap::{Args, Subcommand};
use uuid::Uuid;
use voiceai_cli::Mutation;

use super::common::Page;
use crate::jobs::export::Format;

/// `export …`
#[derive(Debug, Subcommand)]
pub enum Export {
    /// Order an export
    Create(CreateExport),
    /// Orders, newest first
    List {
        /// Only this tenant's
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
        /// Which part of the list.
        #[command(flatten)]
        page: Page,
    },
    /// One order, with a download link once it is made
    Show {
        /// The order's id
        id: Uuid,
    },
    /// Cancel an order that is open, or remove one that has ended, with its object
    Delete {
        /// The order's id
        id: Uuid,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
}

/// `export create`
#[derive(Debug, Args)]
pub struct CreateExport {
    /// devices, alerts, telemetry, or schema.table out of EXPORT_TABLES
    #[arg(value_name = "TYPE")]
    pub export_type: String,
    /// How it is written
    #[arg(long, value_enum, default_value = "csv")]
    pub format: Format,
    /// Only this tenant's rows
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Which rows: a JSON object with status, site_ids, device_ids, alert_types, time_range (1h, 6h, 24h, 7d, 30d, 90d)
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub filters: String,
    /// Where its end is told, by one POST
    #[arg(long, value_name = "URL")]
    pub callback_url: Option<String>,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}
