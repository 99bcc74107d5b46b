use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use voiceai_postgres::Term;
use voiceai_redis::{Redis, RedisError, Script, Value};

static SAVE: LazyLock<Script> =
    LazyLock::new(|| Script::new("mail save offset", include_str!("save_offset.lua")));

/// Before the first entry.
pub(super) const BEGINNING: &str = "0-0";

/// The key under which the offset of `stream` is kept.
#[must_use]
pub fn offset_key(stream: &str) -> String {
    format!("mail:stream_offsets:{}", URL_SAFE_NO_PAD.encode(stream))
}

/// The key of the highest term that wrote that offset; in the same slot of a Cluster.
#[must_use]
pub fn term_key(stream: &str) -> String {
    format!("{{{}}}:term", offset_key(stream))
}

/// How far a stream was read.
pub(super) struct Offset<'a> {
    redis: &'a Redis,
    stream: &'a str,
}

impl<'a> Offset<'a> {
    pub(super) const fn new(redis: &'a Redis, stream: &'a str) -> Self {
        Self { redis, stream }
    }

    /// The last entry that was dealt with. One that is no id was written by somebody else: the stream is read again from its
    /// beginning, which costs time and doubles nothing.
    pub(super) async fn load(&self) -> Result<String, RedisError> {
        let offset = self.redis.get(offset_key(self.stream)).await?;
        Ok(match offset {
            Some(offset) if parse(&offset).is_some() => offset,
            Some(offset) => {
                tracing::error!(
                    stream = self.stream,
                    offset,
                    "the saved offset is no stream id: the stream is read from its beginning"
                );
                BEGINNING.to_owned()
            }
            None => BEGINNING.to_owned(),
        })
    }

    /// False when a newer leader has saved one.
    pub(super) async fn save(&self, term: &Term, id: &str) -> Result<bool, RedisError> {
        let keys = vec![offset_key(self.stream).into(), term_key(self.stream).into()];
        let args: Vec<Value> = vec![term.number.to_string().into(), id.to_owned().into()];
        Ok(self.redis.eval::<i64>(&SAVE, keys, args).await? == 1)
    }

    /// True when the stream has never held the entry `after`: it is another stream under the same name, or there is none any more.
    pub(super) async fn is_gone(&self, after: &str) -> Result<bool, RedisError> {
        if after == BEGINNING {
            return Ok(false);
        }
        let last = self.info("last-generated-id").await?;
        Ok(match (last.as_deref().map(parse), parse(after)) {
            (Some(Some(last)), Some(after)) => last < after,
            // No stream: whatever comes next is another one's.
            (None, _) => true,
            _ => false,
        })
    }

    /// True when entries behind `after` may have been trimmed away.
    pub(super) async fn is_trimmed(&self, after: &str) -> Result<bool, RedisError> {
        let own = |from: &str, to: &str| {
            let args: Vec<Value> = [self.stream, from, to, "COUNT", "1"].map(Value::from).into();
            self.redis.command::<Value>("XRANGE", args)
        };
        if after == BEGINNING || self.info("last-generated-id").await?.as_deref() == Some(after) {
            return Ok(false);
        }
        let is_there = |reply: Value| matches!(reply, Value::Array(entries) if !entries.is_empty());
        // The entry itself is gone, and it was not the last: some behind it may be gone too.
        Ok(!is_there(own(after, after).await?))
    }

    /// One value of XINFO STREAM; `None` when there is no stream.
    async fn info(&self, name: &str) -> Result<Option<String>, RedisError> {
        let args: Vec<Value> = vec!["STREAM".into(), self.stream.into()];
        let reply: Value = match self.redis.keyed_command("XINFO", 1, args).await {
            Ok(reply) => reply,
            Err(error) if error.detail().contains("no such key") => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let pairs: Vec<(Value, Value)> = match reply {
            Value::Map(map) => {
                map.inner().into_iter().map(|(key, value)| (Value::from(key), value)).collect()
            }
            Value::Array(flat) => {
                let mut flat = flat.into_iter();
                std::iter::from_fn(|| Some((flat.next()?, flat.next()?))).collect()
            }
            _ => Vec::new(),
        };
        let found = pairs.into_iter().find(|(key, _)| key.as_str().is_some_and(|key| key == name));
        Ok(found.and_then(|(_, value)| value.into_string()))
    }
}

/// Entry ids are ordered by both numbers.
fn parse(id: &str) -> Option<(u64, u64)> {
    let (ms, number) = id.split_once('-')?;
    Some((ms.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_contract() {
        assert_eq!(
            offset_key("mail:delivery_commands"),
            "mail:stream_offsets:bWFpbDpkZWxpdmVyeV9jb21tYW5kcw"
        );
        assert_eq!(term_key("s"), "{mail:stream_offsets:cw}:term");
        assert!(parse("9-0") < parse("10-0") && parse("10-9") < parse("10-10"));
        assert_eq!(parse("x"), None);
    }
}
