//! What ffprobe says of a file.

use serde::Deserialize;

/// The formats that are read. Playlists, and whatever else names further files or addresses, are none of them: a file in the
/// bucket must never make this host read its own files or call somebody.
pub(crate) const FORMATS: &str =
    "wav,w64,aiff,au,caf,mp3,ogg,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,aac,amr,amrnb,amrwb";

/// A file that holds sound.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Probe {
    /// ffmpeg's name of the container.
    pub(crate) format: String,
    /// ffmpeg's name of the codec.
    pub(crate) codec: String,
    /// Samples a second.
    pub(crate) sample_rate: u32,
    /// Channels.
    pub(crate) channels: u32,
    /// Streams of sound; the first is taken.
    pub(crate) streams: usize,
    /// Length in seconds as the file itself says; nothing where it says none, or it was guessed.
    pub(crate) declared_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    streams: Vec<Stream>,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
struct Format {
    #[serde(default)]
    format_name: String,
    duration: Option<String>,
}

#[derive(Deserialize)]
struct Stream {
    codec_type: Option<String>,
    codec_name: Option<String>,
    sample_rate: Option<String>,
    channels: Option<u32>,
    duration: Option<String>,
}

/// Reads ffprobe's JSON; `said` is what it wrote beside it.
pub(crate) fn parse(json: &str, said: &str) -> Result<Probe, String> {
    let document: Document =
        serde_json::from_str(json).map_err(|error| format!("ffprobe's answer cannot be read: {error}"))?;
    let is_sound = |stream: &&Stream| stream.codec_type.as_deref() == Some("audio");
    let streams = document.streams.iter().filter(is_sound).count();
    let Some(stream) = document.streams.iter().find(is_sound) else {
        return Err("it holds no sound".to_owned());
    };
    let guessed = said.contains("Estimating duration from bitrate");
    let seconds = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<f64>().ok());
    let declared = seconds(&stream.duration).or_else(|| seconds(&document.format.duration));
    let sample_rate = stream.sample_rate.as_deref().and_then(|rate| rate.parse().ok()).unwrap_or(0);
    let channels = stream.channels.unwrap_or(0);
    if sample_rate == 0 || channels == 0 {
        return Err("its stream of sound has no samples or no channels".to_owned());
    }
    Ok(Probe {
        format: document.format.format_name,
        codec: stream.codec_name.clone().unwrap_or_else(|| "unknown".to_owned()),
        sample_rate,
        channels,
        streams,
        declared_seconds: declared.filter(|length| !guessed && length.is_finite() && *length > 0.0),
    })
}

/// Whether a recording that was read to its end in `decoded` seconds is shorter than it says itself.
pub(crate) fn is_cut(declared: Option<f64>, decoded: f64) -> bool {
    // Coders pad the ends by up to a few hundred milliseconds.
    declared.is_some_and(|declared| declared - decoded > 0.3 + declared * 0.01)
}

/// The last `out_time_us` of what `-progress` wrote, in seconds.
pub(crate) fn decoded_seconds(progress: &str) -> Option<f64> {
    let values = progress.lines().rev().filter_map(|line| line.strip_prefix("out_time_us="));
    #[expect(clippy::cast_precision_loss, reason = "microseconds of hours")]
    let last = values.filter_map(|value| value.trim().parse::<i64>().ok()).next().map(|us| us as f64 / 1e6);
    last.filter(|seconds| *seconds >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stream_of_sound_is_taken() {
        let json = r#"{"streams":[{"codec_type":"video","codec_name":"mjpeg"},
            {"codec_type":"audio","codec_name":"opus","sample_rate":"48000","channels":2},
            {"codec_type":"audio","codec_name":"aac","sample_rate":"8000","channels":1}],
            "format":{"format_name":"matroska,webm","duration":"20.008000"}}"#;
        let probe = parse(json, "").unwrap();
        assert_eq!((probe.codec.as_str(), probe.sample_rate, probe.streams), ("opus", 48_000, 2));
        assert_eq!(probe.declared_seconds, Some(20.008));
        let guessed =
            parse(json, "[warning] Estimating duration from bitrate, this may be inaccurate").unwrap();
        assert_eq!(guessed.declared_seconds, None);
        assert!(parse(r#"{"streams":[],"format":{}}"#, "").unwrap_err().contains("no sound"));
        assert!(parse("{}", "").is_err() && parse("", "").is_err());
    }

    #[test]
    fn half_a_recording_is_cut_and_padding_is_not() {
        assert!(is_cut(Some(20.0), 10.0) && is_cut(Some(2.0), 1.0) && is_cut(Some(3600.0), 3500.0));
        assert!(!is_cut(Some(20.16), 20.0) && !is_cut(Some(20.0), 20.1) && !is_cut(None, 1.0));
    }

    #[test]
    fn progress_is_read_from_its_end() {
        assert_eq!(
            decoded_seconds("out_time_us=1000000\nprogress=continue\nout_time_us=2500000\nprogress=end\n"),
            Some(2.5)
        );
        assert_eq!(decoded_seconds("out_time_us=N/A\nprogress=end\n"), None);
    }
}
