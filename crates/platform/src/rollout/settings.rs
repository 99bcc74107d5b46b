use std::time::Duration;

use voiceai_config::Reader;
use voiceai_config::catalogue::duty as names;
use voiceai_runtime::Secret;
use voiceai_webhook::Keys;

/// The settings of rollouts.
#[derive(Debug, Clone)]
pub struct RolloutSettings {
    /// `ROLLOUT_DISPATCH_URL`.
    pub url: Option<Secret>,
    /// `ROLLOUT_DISPATCH_SECRET`.
    pub keys: Option<Keys>,
    /// `ROLLOUT_INTERVAL`.
    pub interval: Duration,
    /// `ROLLOUT_REPORT_TIMEOUT`.
    pub report_timeout: Duration,
}

impl RolloutSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let keys = reader.optional(&names::ROLLOUT_DISPATCH_SECRET).and_then(|secret| {
            let keys = Keys::new(vec![secret]);
            if let Err(error) = &keys {
                let remedy = "Set it to whsec_ followed by the base64 of 24 to 64 random bytes.";
                reader.violation(
                    &names::ROLLOUT_DISPATCH_SECRET,
                    format!("a secret that signs: {error}"),
                    remedy,
                );
            }
            keys.ok()
        });
        Self {
            url: reader.optional(&names::ROLLOUT_DISPATCH_URL),
            keys,
            interval: reader.get(&names::ROLLOUT_INTERVAL),
            report_timeout: reader.get(&names::ROLLOUT_REPORT_TIMEOUT),
        }
    }
}
