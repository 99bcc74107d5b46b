//! Command-line conventions shared by both binaries: exit codes, errors, output, confirmation, actor, and the commands that
//! are the same in both (`config`, `healthcheck`, `completions`).
//!
//! stdout carries data and nothing else; questions, progress and errors go to stderr. With `--json`, data is one JSON document
//! and an error is `{"code","message","remedy"}`.

mod actor;
mod args;
mod completions;
mod config;
mod confirm;
pub mod doctor;
mod exit;
mod failure;
mod healthcheck;
mod output;
mod parse;

pub use actor::{Actor, Surroundings, actor};
pub use args::{Mutation, OutputArgs, duration_arg, rate_arg, time_arg};
pub use completions::{Completions, completions};
pub use config::{ConfigCommand, config, invalid_settings};
pub use confirm::{Question, confirm};
pub use exit::ExitCode;
pub use failure::Failure;
pub use healthcheck::{Health, Healthcheck, healthcheck};
pub use output::{Column, Output, human_duration};
pub use parse::parse;
pub use voiceai_config::runtime_dir;
