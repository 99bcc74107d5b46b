//! Job ids: generated ones are short enough to cost Redis 16 bytes, chosen ones are the caller's business.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::QueueError;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A job's id, unique within its queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Arc<str>);

impl JobId {
    /// An id chosen by the caller: enqueueing it again is known, not repeated.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] unless it has 1 to 128 bytes without spaces and control characters.
    pub fn chosen(id: impl AsRef<str>) -> Result<Self, QueueError> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > 128 || id.chars().any(|c| c.is_control() || c == ' ') {
            return Err(QueueError::Invalid {
                what: "job id",
                given: id.chars().take(140).collect(),
                expected: "1 to 128 bytes without spaces or control characters",
            });
        }
        Ok(Self(id.into()))
    }

    pub(crate) fn trusted(id: &str) -> Self {
        Self(id.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for JobId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Writes `value` in base 62 into all of `out`, most significant digit first.
fn base62(mut value: u64, out: &mut [u8]) {
    for slot in out.iter_mut().rev() {
        let digit = usize::try_from(value % 62).unwrap_or(0);
        *slot = DIGITS.get(digit).copied().unwrap_or(b'0');
        value /= 62;
    }
}

/// Random text of `N` base-62 digits.
pub(crate) fn random_text<const N: usize>() -> String {
    let mut out = [0_u8; N];
    for slot in &mut out {
        *slot = DIGITS[rand::random_range(0..62)];
    }
    out.iter().map(|b| char::from(*b)).collect()
}

/// One producer's ids: a random nonce of 8 digits and a counter of 6, so 14 bytes. The server knows a repeated batch
/// by nonce and counter. A nonce lasts for 5.6 · 10^10 jobs.
#[derive(Debug)]
pub(crate) struct Nonce {
    text: [u8; 8],
    next: u64,
}

/// 62^6: the counter's end.
const COUNTER_END: u64 = 56_800_235_584;

impl Nonce {
    pub(crate) fn random() -> Self {
        let mut text = [0_u8; 8];
        base62(rand::random_range(0..62_u64.pow(8)), &mut text);
        Self { text, next: 1 }
    }

    pub(crate) fn text(&self) -> String {
        self.text.iter().map(|b| char::from(*b)).collect()
    }

    /// The next id, as bytes of ASCII.
    pub(crate) fn next_id(&mut self) -> [u8; 14] {
        let mut id = [0_u8; 14];
        id[..8].copy_from_slice(&self.text);
        base62(self.next, &mut id[8..]);
        self.next += 1;
        id
    }

    /// The counter of the id given out last.
    pub(crate) const fn last(&self) -> u64 {
        self.next - 1
    }

    pub(crate) const fn is_used_up(&self) -> bool {
        self.next + 1_000_000 > COUNTER_END
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_are_ordered_and_distinct() {
        let mut nonce = Nonce::random();
        let mut last = nonce.next_id();
        for _ in 0..10_000 {
            let id = nonce.next_id();
            assert!(id > last);
            assert!(id.iter().all(u8::is_ascii_alphanumeric));
            last = id;
        }
        assert_eq!(nonce.last(), 10_001);
        assert_ne!(Nonce::random().text(), nonce.text());
    }

    #[test]
    fn chosen_ids_are_checked() {
        assert!(JobId::chosen("order/42:résumé").is_ok());
        for bad in ["", "a b", "a\nb", &"x".repeat(129)] {
            assert!(JobId::chosen(bad).is_err(), "{bad:?}");
        }
    }
}
