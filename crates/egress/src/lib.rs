//! One rule for the way out: which connections go through the proxy, and the tunnel through it.
//!
//! `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` mean in every part of the services what they mean here. Programs that read the
//! variables themselves (curl in a provider script, the AWS SDK) agree on less than is commonly thought, so only entries that
//! they all understand alike are taken; [`Rule::environment`] gives them to a child process under both spellings.

mod http;
mod no_proxy;
mod rule;
mod tunnel;

pub use http::http_client;
pub use no_proxy::{NoProxy, NoProxyError};
pub use rule::{METADATA, Proxy, ProxyError, Purpose, Rule};
pub use tunnel::{EgressError, connect};
