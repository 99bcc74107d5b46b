//! The way out through a proxy.

use url::Url;

use crate::setting::settings;
use crate::value::kinds::{list, url};

settings! {
    "Proxy", "Provider scripts get these under the same names. A connection goes directly where `NO_PROXY` names its host.";

    /// Proxy of plain HTTP requests: `http://host:port`, with user and password where it asks for them.
    HTTP_PROXY: Url = url().aliases(&["http_proxy"]);
    /// Proxy of HTTPS requests and of tunnels.
    HTTPS_PROXY: Url = url().aliases(&["https_proxy"]);
    /// Hosts that are reached directly: `name` or `.name` (it and all below it), addresses, networks such as `10.0.0.0/8`, or `*`. Name `169.254.169.254` here wherever an instance profile is used. Names are never resolved for this rule.
    NO_PROXY: Vec<String> = list().aliases(&["no_proxy"]);
}
