//! The way out through a proxy.

use crate::setting::{Binaries, settings};
use crate::value::kinds::{list, url};
use url::Url;

settings! {
    "Proxy", "Handed to provider scripts under the same names.";

    /// Proxy of plain HTTP requests.
    HTTP_PROXY: Url = url().only(Binaries::Scaler);
    /// Proxy of HTTPS requests.
    HTTPS_PROXY: Url = url().only(Binaries::Scaler);
    /// Hosts, suffixes and networks that are reached directly.
    NO_PROXY: Vec<String> = list().only(Binaries::Scaler);
}
