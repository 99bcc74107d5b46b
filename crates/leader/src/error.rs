use voiceai_redis::RedisError;

/// Something about an election could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// Redis did not answer, or refused.
    #[error("read the leader key `{key}`")]
    Read {
        /// The leader key.
        key: String,
        /// What Redis or the connection said.
        source: RedisError,
    },
    /// The key holds something else than a leader's record.
    #[error(
        "the leader key `{key}` holds no leader record ({detail}); if nothing else uses it, remove it with `DEL {key}`"
    )]
    NotARecord {
        /// The leader key.
        key: String,
        /// What it holds instead.
        detail: String,
    },
}
