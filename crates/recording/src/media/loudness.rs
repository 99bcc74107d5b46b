//! Loudness by EBU R128, and how far a recording is from where it should be.

/// What the `ebur128` filter measured.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Loudness {
    /// Integrated loudness in LUFS; nothing where there was too little sound to measure.
    pub(crate) integrated: Option<f64>,
    /// Loudness range in LU.
    pub(crate) range: f64,
    /// Highest true peak in dBTP; nothing for silence.
    pub(crate) true_peak: Option<f64>,
}

/// Below this gate nothing counts as sound.
const SILENCE: f64 = -69.9;
/// Where true peaks are held: what lossy formats add stays below full scale.
const CEILING: f64 = -1.0;
/// Most by which a recording is made louder: beyond it one would listen to the noise.
const LOUDER_MAX: f64 = 20.0;

/// The change that brings a recording to its loudness.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gain {
    /// In dB.
    pub(crate) db: f64,
    /// Whether peaks must be held.
    pub(crate) limited: bool,
}

/// Reads the summary at the end of what ffmpeg said.
pub(crate) fn parse(said: &str) -> Option<Loudness> {
    let (_, summary) = said.rsplit_once("Summary:")?;
    let value = |name: &str| {
        let line = summary.lines().map(str::trim).find_map(|line| line.strip_prefix(name))?;
        let number: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(number)
    };
    let integrated = value("I:")?;
    Some(Loudness {
        integrated: Some(integrated).filter(|i| i.is_finite() && *i > SILENCE),
        range: value("LRA:").filter(|range| range.is_finite()).unwrap_or(0.0),
        true_peak: value("Peak:").filter(|peak| peak.is_finite()),
    })
}

/// What is to be done to a recording of this loudness.
pub(crate) fn gain(measured: &Loudness, target: f64) -> Gain {
    let Some(integrated) = measured.integrated else { return Gain { db: 0.0, limited: false } };
    // A tenth is what the measurement is worth.
    let db = ((target - integrated).min(LOUDER_MAX) * 10.0).round() / 10.0;
    Gain { db, limited: measured.true_peak.is_some_and(|peak| peak + db > CEILING) }
}

impl Gain {
    /// As a chain of ffmpeg's filters.
    pub(crate) fn filters(self) -> String {
        let volume = format!("volume={:.1}dB", self.db);
        if self.limited {
            let limit = 10_f64.powf(CEILING / 20.0);
            format!("{volume},alimiter=limit={limit:.4}:level=false:attack=1:release=50")
        } else {
            volume
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "[info] title : Summary: I: -5 LUFS\n[Parsed_ebur128_0 @ 0x1] [info] Summary:\n\n  Integrated loudness:\n    \
                        I:         -21.6 LUFS\n    Threshold: -31.7 LUFS\n\n  Loudness range:\n    LRA:         3.4 LU\n    \
                        LRA low:   -21.8 LUFS\n\n  True peak:\n    Peak:      -18.1 dBFS\n";

    #[test]
    fn the_last_summary_counts() {
        let loudness = parse(SAID).unwrap();
        assert_eq!(loudness, Loudness { integrated: Some(-21.6), range: 3.4, true_peak: Some(-18.1) });
        assert_eq!(parse("no such thing"), None);
        let silent = parse("Summary:\n I: -70.0 LUFS\n LRA: 0.0 LU\n Peak: -inf dBFS").unwrap();
        assert_eq!(silent, Loudness { integrated: None, range: 0.0, true_peak: None });
        assert_eq!(gain(&silent, -16.0), Gain { db: 0.0, limited: false });
    }

    #[test]
    fn the_gain_reaches_the_target_but_never_full_scale_nor_the_noise() {
        let at =
            |integrated, peak| Loudness { integrated: Some(integrated), range: 0.0, true_peak: Some(peak) };
        assert_eq!(gain(&at(-21.6, -18.1), -16.0), Gain { db: 5.6, limited: false });
        assert_eq!(gain(&at(-10.0, 0.0), -16.0), Gain { db: -6.0, limited: false });
        assert_eq!(gain(&at(-24.0, -3.0), -16.0), Gain { db: 8.0, limited: true });
        assert_eq!(gain(&at(-60.0, -55.0), -16.0), Gain { db: 20.0, limited: false });
        assert_eq!(
            gain(&at(-24.0, -3.0), -16.0).filters(),
            "volume=8.0dB,alimiter=limit=0.8913:level=false:attack=1:release=50"
        );
        assert_eq!(gain(&at(-10.0, 0.0), -16.0).filters(), "volume=-6.0dB");
    }
}
