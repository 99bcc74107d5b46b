use fred::error::{Error, ErrorKind};

/// What kind of trouble it was, as far as a caller acts differently on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisErrorKind {
    /// No connection, or it broke: the command may or may not have been applied.
    Unreachable,
    /// No answer in time: the command may or may not have been applied.
    TimedOut,
    /// The server is at `maxmemory` and refuses commands that need more.
    OutOfMemory,
    /// The server cannot write its append-only file or snapshot (full disk) and refuses writes.
    CannotPersist,
    /// The server is a replica, is loading, or has too few replicas: it refuses writes for now.
    NotWritable,
    /// User or password is wrong, missing, or may not do this.
    Denied,
    /// The key holds another type of value.
    WrongType,
    /// The function library or script is not loaded.
    NotLoaded,
    /// The reply does not have the expected form.
    BadReply,
    /// Anything else that the server answered.
    Other,
}

/// A Redis call that failed: what was tried, and what came back. Holds no key's value and no password.
#[derive(Clone, Debug, thiserror::Error)]
#[error("redis: {tried}: {detail}")]
pub struct RedisError {
    tried: String,
    detail: String,
    kind: RedisErrorKind,
}

impl RedisError {
    /// An error that this crate or a caller found itself.
    #[must_use]
    pub fn new(kind: RedisErrorKind, tried: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { tried: tried.into(), detail: detail.into(), kind }
    }

    pub(crate) fn from_fred(tried: impl Into<String>, error: &Error) -> Self {
        let detail = error.details();
        let kind = classify(error.kind(), detail);
        let detail = if detail.is_empty() { error.to_string() } else { detail.to_owned() };
        Self { tried: tried.into(), detail, kind }
    }

    /// What kind of trouble it was.
    #[must_use]
    pub const fn kind(&self) -> RedisErrorKind {
        self.kind
    }

    /// The server's or the connection's own words.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// True when the command may have been applied although no answer came.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self.kind, RedisErrorKind::Unreachable | RedisErrorKind::TimedOut)
    }

    /// True when the server is away or cannot serve for now, so that the same call may succeed later.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(
            self.kind,
            RedisErrorKind::Unreachable
                | RedisErrorKind::TimedOut
                | RedisErrorKind::NotWritable
                | RedisErrorKind::CannotPersist
                | RedisErrorKind::OutOfMemory
        )
    }
}

fn classify(kind: &ErrorKind, detail: &str) -> RedisErrorKind {
    use RedisErrorKind as K;
    // The server's own prefix decides first: fred files many of them under `Unknown`.
    let prefix = detail.split([' ', ':']).next().unwrap_or_default();
    match prefix {
        "OOM" => return K::OutOfMemory,
        "MISCONF" => return K::CannotPersist,
        "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOREPLICAS" | "TRYAGAIN" | "BUSY"
        | "UNBLOCKED" => return K::NotWritable,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => return K::Denied,
        "WRONGTYPE" => return K::WrongType,
        "NOSCRIPT" => return K::NotLoaded,
        _ => {}
    }
    if detail.contains("Function not found") {
        return K::NotLoaded;
    }
    // fred's word, of kind `Unknown`, for a connection that is being made anew: nothing was written.
    if detail == "Failed to route command." {
        return K::Unreachable;
    }
    // A script's inner OOM arrives behind the script's own words.
    if detail.contains("OOM command not allowed") || detail.contains("OOM allow-oom") {
        return K::OutOfMemory;
    }
    if detail.contains("WRONGTYPE") {
        return K::WrongType;
    }
    if detail.contains("-READONLY") || detail.contains("can't write against a read only replica") {
        return K::NotWritable;
    }
    match kind {
        ErrorKind::Timeout => K::TimedOut,
        ErrorKind::IO
        | ErrorKind::Canceled
        | ErrorKind::Backpressure
        | ErrorKind::Routing
        | ErrorKind::Sentinel => K::Unreachable,
        ErrorKind::Auth => K::Denied,
        ErrorKind::Parse | ErrorKind::Protocol => K::BadReply,
        _ => K::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_prefix_decides() {
        let of = |kind, text: &str| RedisError::from_fred("x", &Error::new(kind, text.to_owned())).kind();
        use RedisErrorKind as K;
        let oom = "OOM command not allowed when used memory > 'maxmemory'.";
        assert_eq!(of(ErrorKind::Unknown, oom), K::OutOfMemory);
        assert_eq!(of(ErrorKind::Unknown, "MISCONF Errors writing to the AOF file"), K::CannotPersist);
        assert_eq!(of(ErrorKind::Unknown, "ERR Function not found"), K::NotLoaded);
        assert_eq!(of(ErrorKind::IO, "Connection reset by peer"), K::Unreachable);
        assert_eq!(of(ErrorKind::Unknown, "Failed to route command."), K::Unreachable);
        assert_eq!(of(ErrorKind::Timeout, "Request timed out."), K::TimedOut);
        assert_eq!(of(ErrorKind::InvalidArgument, "WRONGTYPE Operation against a key"), K::WrongType);
    }
}
