//! The settings of what follows a call.

use std::path::PathBuf;
use std::time::Duration;

use voiceai_aws::S3Settings;
use voiceai_config::Reader;
use voiceai_config::catalogue::recording as names;
use voiceai_config::catalogue::recording::RecordingFormat;

/// `RECORDING_…`, `POST_CALL_…`.
#[derive(Debug, Clone)]
pub struct RecordingSettings {
    /// The bucket of recordings; present exactly where `RECORDING_ENABLED` is true.
    pub store: Option<S3Settings>,
    /// `RECORDING_FORMAT`.
    pub format: RecordingFormat,
    /// `RECORDING_BITRATE`, in kilobits a second.
    pub bitrate: u32,
    /// `RECORDING_LOUDNESS`, in LUFS.
    pub loudness: f64,
    /// `RECORDING_BYTES_MAX`.
    pub bytes_max: u64,
    /// `RECORDING_DURATION_MAX`.
    pub duration_max: Duration,
    /// `RECORDING_OUTPUT_BYTES_MAX`.
    pub output_bytes_max: u64,
    /// `RECORDING_MEMORY_MAX`, in bytes.
    pub memory_max: u64,
    /// `RECORDING_TIMEOUT`: processor time of one run of ffmpeg.
    pub timeout: Duration,
    /// `RECORDING_WORK_DIR`.
    pub work_dir: PathBuf,
    /// `RECORDING_WORK_FREE_MIN`, in bytes.
    pub work_free_min: u64,
    /// `RECORDING_ORIGINALS_KEEP`; `None`: for ever.
    pub originals_keep: Option<Duration>,
    /// `POST_CALL_TABLE`.
    pub call_table: Option<String>,
}

impl RecordingSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let enabled = reader.get(&names::RECORDING_ENABLED);
        let store =
            S3Settings::read_other(reader, &names::RECORDINGS_S3_BUCKET, &names::RECORDINGS_S3_REGION);
        if enabled && store.is_none() {
            reader.violation(
                &names::RECORDINGS_S3_BUCKET,
                "the bucket of recordings, because RECORDING_ENABLED is true",
                "Set it, or set RECORDING_ENABLED to false.",
            );
        }
        let table = reader.optional(&names::POST_CALL_TABLE);
        if table.as_deref().is_some_and(|table| crate::platform::quoted(table).is_none()) {
            reader.violation(
                &names::POST_CALL_TABLE,
                "a table's name, or schema.table",
                "Write it as the database spells it, without quotes, such as public.Conversation.",
            );
        }
        #[expect(clippy::cast_precision_loss, reason = "two digits")]
        let loudness = reader.get(&names::RECORDING_LOUDNESS) as f64;
        Self {
            store: store.filter(|_| enabled),
            format: reader.get(&names::RECORDING_FORMAT),
            bitrate: reader.get(&names::RECORDING_BITRATE),
            loudness,
            bytes_max: reader.get(&names::RECORDING_BYTES_MAX),
            duration_max: reader.get(&names::RECORDING_DURATION_MAX),
            output_bytes_max: reader.get(&names::RECORDING_OUTPUT_BYTES_MAX),
            memory_max: reader.get(&names::RECORDING_MEMORY_MAX),
            timeout: reader.get(&names::RECORDING_TIMEOUT),
            work_dir: reader
                .optional(&names::RECORDING_WORK_DIR)
                .unwrap_or_else(|| std::env::temp_dir().join("voiceai-recordings")),
            work_free_min: reader.get(&names::RECORDING_WORK_FREE_MIN),
            originals_keep: reader.optional(&names::RECORDING_ORIGINALS_KEEP),
            call_table: table,
        }
    }

    /// Whether recordings are processed.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.store.is_some()
    }
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<RecordingSettings, String> {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        let read = resolved.read(RecordingSettings::read);
        read.map(|loaded| loaded.settings).map_err(|report| report.to_string())
    }

    #[test]
    fn recordings_need_their_bucket_and_only_when_they_are_on() {
        assert!(!read(&[]).unwrap().is_enabled());
        assert!(!read(&[("RECORDINGS_S3_BUCKET", "recordings")]).unwrap().is_enabled());
        let refused = read(&[("RECORDING_ENABLED", "true")]).unwrap_err();
        assert!(refused.contains("RECORDINGS_S3_BUCKET"), "{refused}");
        let on = read(&[("RECORDING_ENABLED", "true"), ("RECORDINGS_S3_BUCKET", "recordings")]).unwrap();
        assert_eq!(on.store.unwrap().bucket, "recordings");
        let refused = read(&[("RECORDING_ENABLED", "true"), ("RECORDINGS_S3_BUCKET", "s3://x")]).unwrap_err();
        assert!(refused.contains("RECORDINGS_S3_BUCKET"), "{refused}");
    }

    #[test]
    fn a_table_is_a_name_with_at_most_a_schema() {
        assert!(read(&[("POST_CALL_TABLE", "public.Conversation")]).is_ok());
        assert!(read(&[("POST_CALL_TABLE", "a.b.c")]).unwrap_err().contains("POST_CALL_TABLE"));
    }
}
