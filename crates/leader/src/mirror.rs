use std::fmt;
use std::sync::LazyLock;

use futures_util::future::BoxFuture;
use voiceai_redis::{Redis, Script};

/// Why a copy of the term could not be read or raised.
pub type MirrorError = Box<dyn std::error::Error + Send + Sync>;

/// Highest number a copy may hold. Lua counts in doubles, which are exact well beyond it; anything above was never a
/// term.
pub(crate) const TERM_MAX: i64 = 999_999_999_999_999;

static RAISE: LazyLock<Script> = LazyLock::new(|| Script::new("leader raise", include_str!("lua/raise.lua")));

/// A copy of the newest term, beside data that a script fences with it. It is read before a term is issued, so that a
/// database restored from a backup cannot issue an old one, and raised before the new leader acts.
///
/// The copy at `{<key>}:term` is kept by the election itself and need not be given. Each call is cut off after the
/// election's call limit, so both must be safe to drop at any point.
pub trait TermMirror: Send + Sync {
    /// For logs.
    fn name(&self) -> &str;

    /// The highest term it holds; 0 when it holds none.
    fn highest(&self) -> BoxFuture<'_, Result<i64, MirrorError>>;

    /// Raises it to `term`; never lowers it.
    fn raise(&self, term: i64) -> BoxFuture<'_, Result<(), MirrorError>>;
}

/// A copy that is a number under one Redis key, on any Redis.
pub struct RedisTerm {
    redis: Redis,
    key: String,
}

impl fmt::Debug for RedisTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTerm").field("key", &self.key).finish_non_exhaustive()
    }
}

impl RedisTerm {
    /// The copy under `key` on `redis`.
    #[must_use]
    pub fn new(redis: Redis, key: impl Into<String>) -> Self {
        Self { redis, key: key.into() }
    }
}

impl TermMirror for RedisTerm {
    fn name(&self) -> &str {
        &self.key
    }

    fn highest(&self) -> BoxFuture<'_, Result<i64, MirrorError>> {
        Box::pin(async move {
            match self.redis.get(self.key.as_str()).await? {
                None => Ok(0),
                Some(text) => {
                    parse(&text).ok_or_else(|| "it holds no term; the next election replaces it".into())
                }
            }
        })
    }

    fn raise(&self, term: i64) -> BoxFuture<'_, Result<(), MirrorError>> {
        Box::pin(async move {
            let keys = vec![self.key.as_str().into()];
            let _: String = self.redis.eval(&RAISE, keys, vec![term.into()]).await?;
            Ok(())
        })
    }
}

fn parse(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|term| digits && *term <= TERM_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_number_is_a_term() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("999999999999999"), Some(TERM_MAX));
        for bad in ["", "-1", "+1", " 1", "1e3", "1000000000000000", "99999999999999999999", "x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
