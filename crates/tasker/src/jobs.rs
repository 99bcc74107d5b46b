//! Every kind of job, a file or folder each, and what the command line knows of them.
//!
//! `diagnostic.probe` comes with the queue itself: [`voiceai_queue::probe`].

pub mod backup;
pub mod duty;
pub mod export;
pub mod housekeeping;
pub mod messages;
pub mod orchestration;
pub mod recording;
pub mod registry;
pub mod send_email;
pub mod storage;
pub mod webhook_event;
