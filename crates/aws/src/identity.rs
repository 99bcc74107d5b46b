//! Whose credentials these are: the one question that needs no right at all.

use std::time::Duration;

use crate::access::{AwsAccess, Patience};
use crate::failure::CallError;

/// The ARN that AWS knows these credentials by, such as `arn:aws:sts::123456789012:assumed-role/ops/i-1`: proves that there are
/// credentials, that they are valid now, and that this host's clock is right.
///
/// # Errors
/// [`CallError`], within `limit`.
pub async fn caller_identity(access: &AwsAccess, limit: Duration) -> Result<String, CallError> {
    let client = aws_sdk_sts::Client::new(&access.load(Patience::of_a_call(limit)).await);
    let answer = client.get_caller_identity().send().await;
    let answer = answer.map_err(|error| CallError::of("sts:GetCallerIdentity", &error))?;
    Ok(answer.arn.unwrap_or_else(|| "a caller without a name".to_owned()))
}
