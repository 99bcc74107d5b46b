//! What is posted to addresses: the guarded way for those that tables name, and what an answer means.

use std::time::Duration;

use voiceai_webhook::{Answer, Client, Failure, GuardError};

/// The two ways out. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// For addresses out of tables: only public ones, and what WEBHOOK_ALLOW_NETWORKS adds.
    pub guarded: Client,
    /// For addresses out of the settings: whoever runs the service may name any.
    pub trusted: Client,
}

/// What came of a post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken.
    Taken,
    /// It may be taken later; after this long, where the receiver says so.
    Again(String, Option<Duration>),
    /// It will never be taken as it is.
    Never(String),
}

/// Judges an answer, or that there was none. A redirect is no delivery, and most 4xx say that the same request will be refused again.
#[must_use]
pub fn judge(answer: &Result<Answer, Failure>) -> Verdict {
    match answer {
        Ok(answer) if answer.is_taken() => Verdict::Taken,
        Ok(answer) => {
            let text = match answer.text.as_str() {
                "" => format!("http_{}", answer.status),
                said => format!("http_{}: {}", answer.status, said.chars().take(200).collect::<String>()),
            };
            match answer.status {
                408 | 425 | 429 | 500.. => Verdict::Again(text, answer.retry_after),
                _ => Verdict::Never(text),
            }
        }
        // A name that has no address now may have one later.
        Err(error @ Failure::Refused(GuardError::Resolve { .. })) => Verdict::Again(crate::text(error), None),
        Err(error @ Failure::Refused(_)) => Verdict::Never(crate::text(error)),
        Err(error) => Verdict::Again(crate::text(error), None),
    }
}

/// An id of characters that headers and job ids take: `prefix:name`, or a digest in the name's place.
#[must_use]
pub fn plain_id(prefix: &str, name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':');
    if !name.is_empty() && name.bytes().all(is_plain) && prefix.len() + name.len() < 120 {
        return format!("{prefix}:{name}");
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    let digits: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}:{digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_whatever_names_hold() {
        assert_eq!(plain_id("sla:2026-11-22", "tenant-1"), "sla:2026-11-22:tenant-1");
        for odd in ["", "a b", "é", &"x".repeat(300)] {
            let id = plain_id("p", odd);
            assert!(id.len() < 128 && id.is_ascii() && !id.contains(' ') && id == plain_id("p", odd), "{id}");
        }
        assert_ne!(plain_id("p", "a b"), plain_id("p", "a c"));
    }

    #[test]
    fn answers_are_judged_by_what_another_attempt_may_change() {
        let of = |status: u16| {
            judge(&Ok(Answer {
                status,
                retry_after: None,
                text: String::new(),
                address: ([192, 0, 2, 1], 443).into(),
            }))
        };
        for status in [200, 202, 204, 299] {
            assert_eq!(of(status), Verdict::Taken, "{status}");
        }
        for status in [408, 425, 429, 500, 503, 599] {
            assert_eq!(of(status), Verdict::Again(format!("http_{status}"), None), "{status}");
        }
        for status in [301, 302, 400, 401, 404, 410, 422] {
            assert_eq!(of(status), Verdict::Never(format!("http_{status}")), "{status}");
        }
        let timed_out = Failure::TimedOut { phase: "answer", limit: Duration::from_secs(5) };
        assert!(matches!(judge(&Err(timed_out)), Verdict::Again(..)));
        let private = GuardError::Address { host: "x".into(), address: [10, 0, 0, 1].into() };
        assert!(matches!(judge(&Err(private.into())), Verdict::Never(_)));
    }
}
