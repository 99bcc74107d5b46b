//! voiceai-scaler: keeps the fleets of Voice and API servers at the right size.
//!
//! The leader looks at every group on a timer, decides with [`voiceai_scaler_core::decide()`], writes down what it decided and
//! why, and writes an operation row for each server to be made or removed. Each operation is carried out by a task of its
//! own, one written step after the other, so that a drain of an hour blocks nothing and a successor resumes from the rows.

pub mod act;
pub mod cloud_init;
pub mod commands;
pub mod evaluate;
pub mod failpoint;
pub mod heartbeats;
pub mod lead;
pub mod notices;
pub mod routing;
pub mod script;
pub mod settings;
pub mod store;
pub mod views;

pub use commands::main;
pub use routing::dispatcher;
pub use settings::ScalerSettings;
