//! What follows a call.
//!
//! [`PostCall`] closes the platform's record of the call, and in the same transaction tells the tenant and enqueues the recording.
//! [`RecordingProcess`] checks a recording, brings it to one format and one loudness, and stores it beside the original.
//! [`RecordingSweep`] removes originals whose processed copy was just verified. See docs/recordings.md.
//!
//! Everything that a recording is made into depends on the original and the settings alone, so that work which was killed and is
//! done again gives the same objects. ffmpeg reads what strangers sent: it runs with limits on memory, processor time and output,
//! without the network, and ends with its parent.

mod call;
mod error;
mod job;
mod media;
mod metrics;
mod platform;
mod process;
mod rows;
mod settings;
mod sweep;
mod tool;
mod work;

pub use call::{CALL_RECORDS_KEPT, MissingCall, PostCall, PostCallContext, missing_calls};
pub use error::RecordingError;
pub use job::{RECORDING_QUEUE, RecordingContext, RecordingProcess};
pub use process::look;
pub use rows::{MissingRecording, Standing, job_id, missing_recordings, standing};
pub use settings::RecordingSettings;
pub use sweep::{RecordingSweep, SweepContext};
pub use tool::PROGRAMS;
pub use work::clear as clear_work_folder;
