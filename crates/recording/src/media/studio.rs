//! The runs of ffprobe and ffmpeg on the files of one recording.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::sync::CancellationToken;
use voiceai_config::catalogue::recording::RecordingFormat;

use super::container;
use super::loudness::{self, Gain, Loudness};
use super::probe::{self, FORMATS, Probe};
use crate::error::RecordingError;
use crate::settings::RecordingSettings;
use crate::tool::{self, Limits, Ran, Stopped};

/// A file that was decoded from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heard {
    /// Its length in seconds.
    pub(crate) seconds: f64,
    /// Its loudness.
    pub(crate) loudness: Loudness,
    /// Places that could not be decoded.
    pub(crate) errors: u64,
}

/// Room and limits for one recording.
pub(crate) struct Studio<'a> {
    pub(crate) settings: &'a RecordingSettings,
    pub(crate) folder: &'a Path,
    /// For messages.
    pub(crate) key: &'a str,
    pub(crate) cancel: &'a CancellationToken,
}

impl Studio<'_> {
    /// Checks what the file says of itself: that it is whole, and holds sound in a format that is read.
    pub(crate) async fn probe(&self, file: &Path) -> Result<Probe, RecordingError> {
        let (head, tail, size) = ends(file).await.map_err(RecordingError::file("read", file))?;
        container::check(&head, &tail, size)
            .map_err(|why| RecordingError::Truncated { key: self.key.to_owned(), why })?;
        let mut arguments = words("-hide_banner -v level+warning");
        arguments.extend(reading(file));
        arguments.extend(words("-print_format json -show_entries"));
        arguments.push(
            "format=format_name,duration:stream=codec_type,codec_name,sample_rate,channels,duration".into(),
        );
        let ran = self.run("ffprobe", &arguments).await?;
        probe::parse(&ran.stdout, &ran.said).map_err(|why| self.unusable(why))
    }

    /// Decodes the file to its end, or to where it is too long, and measures it.
    pub(crate) async fn hear(&self, file: &Path) -> Result<Heard, RecordingError> {
        let longest = self.settings.duration_max.as_secs_f64();
        let mut arguments = words("-hide_banner -nostdin -nostats -v level+info -threads 1");
        arguments.extend(reading(file));
        arguments.extend(words("-map 0:a:0 -vn -sn -dn -threads 1 -progress pipe:1 -t"));
        // A second more than is allowed shows that it is too long, and ends what would decode for days.
        arguments.push(format!("{:.3}", longest + 1.0).into());
        arguments.extend(words("-af ebur128=peak=true:framelog=verbose -f null -"));
        let ran = self.run("ffmpeg", &arguments).await?;
        let seconds = probe::decoded_seconds(&ran.stdout).unwrap_or(0.0);
        if seconds <= 0.0 {
            return Err(self.unusable("no sound could be decoded".to_owned()));
        }
        if seconds > longest {
            let why = format!("it is longer than {}", humane(self.settings.duration_max));
            return Err(RecordingError::Beyond {
                key: self.key.to_owned(),
                setting: "RECORDING_DURATION_MAX",
                why,
            });
        }
        let loudness = loudness::parse(&ran.said)
            .ok_or_else(|| self.unusable("its loudness could not be measured".to_owned()))?;
        Ok(Heard { seconds, loudness, errors: ran.errors })
    }

    /// Makes the processed copy. The same input gives the same bytes.
    pub(crate) async fn make(
        &self,
        original: &Path,
        channels: u32,
        gain: Gain,
        copy: &Path,
    ) -> Result<(), RecordingError> {
        let mut arguments = words("-hide_banner -nostdin -nostats -v level+error -threads 1");
        arguments.extend(reading(original));
        arguments.extend(words(
            "-map 0:a:0 -vn -sn -dn -map_metadata -1 -map_chapters -1 -fflags +bitexact -flags:a +bitexact -threads 1 -af",
        ));
        arguments.push(gain.filters().into());
        if channels > 2 {
            arguments.extend(words("-ac 2"));
        }
        arguments.extend(encoder(self.settings.format, self.settings.bitrate));
        arguments.push("-y".into());
        arguments.push(address(copy));
        self.run("ffmpeg", &arguments).await.map(drop)
    }

    async fn run(&self, tool: &'static str, arguments: &[OsString]) -> Result<Ran, RecordingError> {
        let limits = Limits {
            memory: self.settings.memory_max,
            cpu: self.settings.timeout,
            file: self.settings.output_bytes_max,
        };
        tool::run(tool, arguments, self.folder, limits, self.cancel).await.map_err(|stopped| match stopped {
            Stopped::Limit { setting, why } => {
                RecordingError::Beyond { key: self.key.to_owned(), setting, why }
            }
            Stopped::Refused(why) => self.unusable(why),
            Stopped::Other(error) => error,
        })
    }

    fn unusable(&self, why: String) -> RecordingError {
        RecordingError::Unusable { key: self.key.to_owned(), why }
    }
}

/// How a file is opened: itself alone, in one of the known formats, and nothing that it may point to.
fn reading(file: &Path) -> Vec<OsString> {
    let mut arguments = words("-protocol_whitelist file -format_whitelist");
    arguments.push(FORMATS.into());
    arguments.push("-i".into());
    arguments.push(address(file));
    arguments
}

/// A path that is never taken for an option or another protocol.
fn address(file: &Path) -> OsString {
    let mut address = OsString::from("file:");
    address.push(file);
    address
}

fn encoder(format: RecordingFormat, bitrate: u32) -> Vec<OsString> {
    let with_rate = |codec: &str, muxer: &str| words(&format!("-c:a {codec} -b:a {bitrate}k -f {muxer}"));
    match format {
        RecordingFormat::Opus => with_rate("libopus", "opus"),
        RecordingFormat::Mp3 => with_rate("libmp3lame", "mp3"),
        RecordingFormat::Flac => words("-c:a flac -f flac"),
        RecordingFormat::Wav => words("-c:a pcm_s16le -f wav"),
    }
}

/// The ending and the content type of a format.
pub(crate) const fn labels(format: RecordingFormat) -> (&'static str, &'static str) {
    match format {
        RecordingFormat::Opus => ("opus", "audio/ogg"),
        RecordingFormat::Mp3 => ("mp3", "audio/mpeg"),
        RecordingFormat::Flac => ("flac", "audio/flac"),
        RecordingFormat::Wav => ("wav", "audio/wav"),
    }
}

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

fn humane(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 3600, seconds % 3600) {
        (hours @ 1.., 0) => format!("{hours} h"),
        _ => format!("{seconds} s"),
    }
}

/// The beginning and the end of a file, and its length.
async fn ends(path: &Path) -> std::io::Result<(Vec<u8>, Vec<u8>, u64)> {
    let mut file = tokio::fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    (&mut file).take(container::HEAD).read_to_end(&mut head).await?;
    file.seek(std::io::SeekFrom::Start(size.saturating_sub(container::TAIL))).await?;
    file.take(container::TAIL).read_to_end(&mut tail).await?;
    Ok((head, tail, size))
}
