//! The HTTP listeners of voiceai-tasker, which are opened only where an address is set.

use std::time::Duration;

use voiceai_runtime::Secret;

use crate::setting::{Binaries, settings};
use crate::value::Address;
use crate::value::kinds::{address, boolean, duration, secret};

settings! {
    "HTTP", "No port is opened unless one of the two addresses is set. An address is `ip:port`, `localhost:port`, or `:port` for 127.0.0.1. There is no health route: a container's check runs `healthcheck`.";

    /// Address of the internal listener: mail's internal REST, the queues' admin API, and `/metrics` where `METRICS_HTTP` is true. Every route asks for the bearer token `INTERNAL_HTTP_TOKEN`.
    MAIL_INTERNAL_HTTP_ADDR: Address = address().aliases(&["TASKER_HTTP_ADDR"]).only(Binaries::Tasker);
    /// Bearer token of the internal listener. Two listeners of one installation may share it.
    INTERNAL_HTTP_TOKEN: Secret = secret().only(Binaries::Tasker).required_with("MAIL_INTERNAL_HTTP_ADDR")
        .check("at least 32 visible ASCII characters without spaces, such as the output of `openssl rand -hex 32`", is_token);
    /// Address of the public listener, for callers that can bring no bearer token: provider feedback and one-click unsubscribe. Each of its routes proves its caller by a signature.
    MAIL_PUBLIC_HTTP_ADDR: Address = address().only(Binaries::Tasker);
    /// True serves Prometheus metrics as `/metrics` on the internal listener, behind the bearer token.
    METRICS_HTTP: bool = boolean().default("false").only(Binaries::Tasker);
    /// Longest time for the head of a request to arrive, on either listener.
    MAIL_INTERNAL_HTTP_READ_HEADER_TIMEOUT: Duration = duration().default("2s").between(100, 60_000).only(Binaries::Tasker);
    /// Longest time for a whole request to arrive, on either listener.
    MAIL_INTERNAL_HTTP_READ_TIMEOUT: Duration = duration().default("10s").between(100, 600_000).only(Binaries::Tasker);
    /// How long a connection without a request is kept, on either listener.
    MAIL_INTERNAL_HTTP_IDLE_TIMEOUT: Duration = duration().default("1m").between(100, 3_600_000).only(Binaries::Tasker);
}

fn is_token(raw: &str) -> bool {
    raw.len() >= 32 && raw.bytes().all(|byte| byte.is_ascii_graphic())
}
