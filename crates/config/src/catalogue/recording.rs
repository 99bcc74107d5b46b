//! What happens after a call: its record, its recording.

use std::path::PathBuf;
use std::time::Duration;

use super::form::is_region;
use super::storage::REGION;
use crate::setting::{Binaries, settings};
use crate::value::choices;
use crate::value::kinds::{boolean, choice, duration, integer, path, text};

/// What a processed recording is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordingFormat {
    /// Opus in Ogg.
    Opus,
    /// MP3.
    Mp3,
    /// FLAC.
    Flac,
    /// 16-bit PCM in WAV.
    Wav,
}

choices!(RecordingFormat { Opus = "opus", Mp3 = "mp3", Flac = "flac", Wav = "wav" });

settings! {
    "Calls and recordings", "What is done after a call; see docs/recordings.md. The store's address and keys are those of the object store, `S3_ENDPOINT`, `S3_ACCESS_KEY` and `S3_SECRET_KEY`.";

    /// Whether recordings are processed after calls. It needs `RECORDINGS_S3_BUCKET`, and ffmpeg on the host.
    RECORDING_ENABLED: bool = boolean().default("false").only(Binaries::Tasker);
    /// Bucket of the recordings: originals are read there, and what is made of them is stored beside them.
    RECORDINGS_S3_BUCKET: String = text().only(Binaries::Tasker).required_when("RECORDING_ENABLED", "true");
    /// Region of that bucket.
    RECORDINGS_S3_REGION: String = text().only(Binaries::Tasker).computed_default("`S3_REGION`, else `AWS_REGION`").check(REGION, is_region);
    /// What a processed recording is stored as.
    RECORDING_FORMAT: RecordingFormat = choice().default("opus").only(Binaries::Tasker);
    /// Kilobits a second of `opus` and `mp3`.
    RECORDING_BITRATE: u32 = integer().default("48").between(16, 320).only(Binaries::Tasker);
    /// Loudness that recordings are brought to, in LUFS (EBU R128).
    RECORDING_LOUDNESS: i64 = integer().default("-16").between(-40, -8).only(Binaries::Tasker);
    /// Largest original in bytes. A larger one is refused before it is read.
    RECORDING_BYTES_MAX: u64 = integer().default("1073741824").between(1_024, 68_719_476_736).only(Binaries::Tasker);
    /// Longest recording. A longer one is refused, whatever its file says of its length.
    RECORDING_DURATION_MAX: Duration = duration().default("8h").between(1_000, 172_800_000).only(Binaries::Tasker);
    /// Largest processed recording in bytes; ffmpeg may write no more.
    RECORDING_OUTPUT_BYTES_MAX: u64 = integer().default("2147483648").between(1_024, 68_719_476_736).only(Binaries::Tasker);
    /// Address space in bytes that ffmpeg and ffprobe may use, each. Their libraries alone take some 300 MB of it.
    RECORDING_MEMORY_MAX: u64 = integer().default("1073741824").between(402_653_184, 68_719_476_736).only(Binaries::Tasker);
    /// Longest processor time of one run of ffmpeg; on the clock it may take ten times as long.
    RECORDING_TIMEOUT: Duration = duration().default("30m").between(1_000, 21_600_000).only(Binaries::Tasker);
    /// Folder for the files of recordings under work, which nobody else uses.
    RECORDING_WORK_DIR: PathBuf = path().only(Binaries::Tasker).computed_default("`voiceai-recordings` in the system's temporary folder");
    /// Bytes that must stay free in the file system of that folder while a recording is fetched. With less the job waits.
    RECORDING_WORK_FREE_MIN: u64 = integer().default("268435456").between(0, 1_099_511_627_776).only(Binaries::Tasker);
    /// How long an original stays after its processed copy was verified. Unset: for ever.
    RECORDING_ORIGINALS_KEEP: Duration = duration().only(Binaries::Tasker).between(60_000, 315_360_000_000);
    /// The platform's table of calls, as `table` or `schema.table` in the database's own spelling.
    POST_CALL_TABLE: String = text().only(Binaries::Tasker)
        .computed_default("the first of `Conversation`, `Call`, `conversations`, `calls` that there is");
}
