//! Signatures by Standard Webhooks 1.0: `v1`, HMAC-SHA256 over `id.timestamp.body`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use voiceai_runtime::Secret;

const PREFIX: &str = "whsec_";
/// What the scheme asks of a key, in bytes.
const LENGTH: std::ops::RangeInclusive<usize> = 24..=64;

/// A secret that nothing can be signed with. Never tells the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not `whsec_` and base64.
    #[error("a webhook secret is whsec_ followed by base64")]
    Malformed,
    /// Too short to be safe, or longer than receivers take.
    #[error("a webhook secret has 24 to 64 bytes, this one has {0}")]
    Length(usize),
}

/// What a delivery is signed with: several while a secret is being replaced. Never tells them.
#[derive(Clone)]
pub struct Keys(Arc<[Hmac<Sha256>]>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

impl Keys {
    /// Checks every secret.
    ///
    /// # Errors
    /// [`KeyError`]; also when there is none.
    pub fn new(secrets: Vec<Secret>) -> Result<Self, KeyError> {
        if secrets.is_empty() {
            return Err(KeyError::Malformed);
        }
        let keys: Result<Vec<_>, _> = secrets.iter().map(key).collect();
        Ok(Self(keys?.into()))
    }

    /// The value of `webhook-signature`: one signature for each key, in their order.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let head = format!("{id}.{timestamp}.");
        let mut signatures = String::with_capacity(48 * self.0.len());
        for key in self.0.iter() {
            let mut mac = key.clone();
            mac.update(head.as_bytes());
            mac.update(body);
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            signatures.push_str("v1,");
            STANDARD.encode_string(mac.finalize().into_bytes(), &mut signatures);
        }
        signatures
    }
}

fn key(secret: &Secret) -> Result<Hmac<Sha256>, KeyError> {
    Hmac::new_from_slice(&decode(secret)?).map_err(|_| KeyError::Malformed)
}

fn decode(secret: &Secret) -> Result<Vec<u8>, KeyError> {
    let text = secret.expose().strip_prefix(PREFIX).ok_or(KeyError::Malformed)?;
    let key = STANDARD.decode(text).map_err(|_| KeyError::Malformed)?;
    if LENGTH.contains(&key.len()) { Ok(key) } else { Err(KeyError::Length(key.len())) }
}

/// A new secret of 32 random bytes.
#[must_use]
pub fn new_secret() -> Secret {
    let key: [u8; 32] = rand::random();
    Secret::new(format!("{PREFIX}{}", STANDARD.encode(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example_of_the_scheme() {
        let keys = Keys::new(vec![Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]).unwrap();
        let signed = keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_rotation_signs_with_both() {
        let (old, new) = (new_secret(), new_secret());
        let both = Keys::new(vec![new.clone(), old.clone()]).unwrap().sign("m", 1, b"{}");
        let one = |secret: Secret| Keys::new(vec![secret]).unwrap().sign("m", 1, b"{}");
        assert_eq!(both, format!("{} {}", one(new), one(old)));
    }

    #[test]
    fn what_cannot_sign_is_refused() {
        let refused = |text: &str| Keys::new(vec![Secret::new(text)]).unwrap_err();
        assert_eq!(refused("hunter2"), KeyError::Malformed);
        assert_eq!(refused("whsec_***"), KeyError::Malformed);
        assert_eq!(refused("whsec_c2hvcnQ="), KeyError::Length(5));
        assert!(Keys::new(Vec::new()).is_err());
    }
}
