use reqwest::{ClientBuilder, Proxy as Way, redirect};
use url::Url;

use crate::rule::Rule;

/// The beginning of an HTTP client that goes out as `rule` says and never as the environment does. It follows no redirect, so
/// that whoever answers cannot send it elsewhere; its time limits are the caller's to set.
pub fn http_client(rule: &Rule) -> ClientBuilder {
    let rule = rule.clone();
    let way = Way::custom(move |url| {
        let proxy = rule.proxy_for_url(url)?;
        Url::parse(proxy.url().expose()).ok()
    });
    // Before the rule: it also forgets what the environment says.
    reqwest::Client::builder().no_proxy().proxy(way).redirect(redirect::Policy::none())
}
