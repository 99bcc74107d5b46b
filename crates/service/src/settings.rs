use voiceai_aws::ResolveError;
use voiceai_cli::{Failure, invalid_settings};
use voiceai_config::{Binary, LayerError, Resolved};

/// All settings of `binary`: from the environment, and where it names a `NAMESPACE` from the platform's stores above it.
///
/// # Errors
/// Refused (4) when what says where the stores are is wrong; unreachable (5) when one cannot be read whole.
pub async fn resolve(binary: Binary) -> Result<Resolved, Failure> {
    // Boxed: the futures of the AWS clients are large, and nobody else's stack should carry them.
    Box::pin(voiceai_aws::resolve(binary)).await.map_err(|error| match error {
        ResolveError::Invalid(report) => invalid_settings(&report),
        ResolveError::Layers(errors) => {
            let one =
                |error: &LayerError| format!("{}: {} failed: {}", error.origin, error.call, error.reason);
            let mut remedies: Vec<_> = errors.iter().map(|error| error.remedy.as_str()).collect();
            remedies.dedup();
            let messages: Vec<_> = errors.iter().map(one).collect();
            Failure::unreachable("settings_unreadable", messages.join("; "), remedies.join(" "))
        }
    })
}
