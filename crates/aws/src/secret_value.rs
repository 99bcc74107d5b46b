//! One secret by its name, for what is not a setting.

use aws_sdk_secretsmanager::error::DisplayErrorContext;
use voiceai_runtime::Secret;

use crate::PlatformSettings;

/// A secret that could not be read. Holds nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("read the secret `{name}` from Secrets Manager: {why}")]
pub struct SecretValueError {
    name: String,
    why: String,
}

/// The text of the secret `name`, a name or an ARN.
///
/// # Errors
/// When it is not there, not text, may not be read, or no answer comes within the settings' call limit.
pub async fn secret_value(settings: &PlatformSettings, name: &str) -> Result<Secret, SecretValueError> {
    let client = aws_sdk_secretsmanager::Client::new(&settings.load().await);
    let failed = |why: String| SecretValueError { name: name.to_owned(), why };
    let answer = client
        .get_secret_value()
        .secret_id(name)
        .send()
        .await
        .map_err(|error| failed(DisplayErrorContext(&error).to_string()))?;
    answer.secret_string().map(Secret::new).ok_or_else(|| failed("it holds no text".to_owned()))
}
