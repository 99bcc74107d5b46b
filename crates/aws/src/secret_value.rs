//! One secret by its name, for what is not a setting.

use std::time::Duration;

use voiceai_runtime::Secret;

use crate::access::{AwsAccess, Patience};
use crate::failure::CallError;

/// Longest time for the whole call.
const LIMIT: Duration = Duration::from_secs(20);

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
/// When it is not there, not text, may not be read, or no answer comes within 20 s.
pub async fn secret_value(access: &AwsAccess, name: &str) -> Result<Secret, SecretValueError> {
    let client = aws_sdk_secretsmanager::Client::new(&access.load(Patience::of_a_call(LIMIT)).await);
    let failed = |why: String| SecretValueError { name: name.to_owned(), why };
    let answer = client.get_secret_value().secret_id(name).send().await.map_err(|error| {
        let error = CallError::of("secretsmanager:GetSecretValue", &error);
        failed(format!("{}. {}", error.reason, error.remedy))
    })?;
    answer.secret_string().map(Secret::new).ok_or_else(|| failed("it holds no text".to_owned()))
}
