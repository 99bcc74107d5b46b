//! The way of every AWS request: the one proxy rule of [`voiceai_egress`], in place of the SDK's own reading of the environment.

use std::fmt;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, ConnectorBuilder};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_types::config_bag::ConfigBag;
use url::Url;
use voiceai_egress::{Proxy, Rule};

/// The variables that move the services a host asks for its own role: what they name is as near as the usual addresses.
const METADATA_VARIABLES: [&str; 2] =
    ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

/// A client that goes out as `rule` says.
pub(crate) fn http_client(rule: &Rule) -> SharedHttpClient {
    let proxies = [&rule.http, &rule.https].into_iter().flatten();
    let mut through: Vec<(String, SharedHttpClient)> = Vec::new();
    for proxy in proxies {
        let address = proxy.url().expose();
        if through.iter().any(|(have, _)| have == address) {
            continue;
        }
        // Whether a request goes this way is decided before it gets here.
        if let Ok(config) = ProxyConfig::all(address) {
            through.push((address.to_owned(), through_proxy(config)));
        }
    }
    SharedHttpClient::new(ByRule {
        rule: rule.clone(),
        metadata: metadata_hosts(),
        direct: direct(),
        through,
    })
}

/// A client that never asks a proxy: what a host asks for its own role.
pub(crate) fn direct() -> SharedHttpClient {
    Builder::new().tls_provider(tls()).build_https()
}

fn tls() -> Provider {
    Provider::rustls(CryptoMode::AwsLc)
}

fn through_proxy(config: ProxyConfig) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = ConnectorBuilder::default().tls_provider(tls()).proxy_config(config.clone());
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        builder.build()
    })
}

fn metadata_hosts() -> Vec<String> {
    let named = METADATA_VARIABLES.iter().filter_map(|name| std::env::var(name).ok());
    named.filter_map(|text| authority(&Url::parse(&text).ok()?)).collect()
}

/// Host and port as they tell one server from another.
fn authority(url: &Url) -> Option<String> {
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

/// Chooses for each request.
struct ByRule {
    rule: Rule,
    metadata: Vec<String>,
    direct: SharedHttpClient,
    /// By the proxy's whole URL.
    through: Vec<(String, SharedHttpClient)>,
}

impl fmt::Debug for ByRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByRule").field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl HttpClient for ByRule {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let through = self
            .through
            .iter()
            .map(|(address, client)| (address.clone(), client.http_connector(settings, components)));
        SharedHttpConnector::new(Choice {
            rule: self.rule.clone(),
            metadata: self.metadata.clone(),
            direct: self.direct.http_connector(settings, components),
            through: through.collect(),
        })
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.direct.validate_base_client_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.direct.connector_metadata()
    }
}

struct Choice {
    rule: Rule,
    metadata: Vec<String>,
    direct: SharedHttpConnector,
    through: Vec<(String, SharedHttpConnector)>,
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice").field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl Choice {
    fn proxy(&self, uri: &str) -> Option<&Proxy> {
        let url = Url::parse(uri).ok()?;
        if authority(&url).is_some_and(|authority| self.metadata.contains(&authority)) {
            return None;
        }
        self.rule.proxy_for_url(&url)
    }
}

impl HttpConnector for Choice {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Some(proxy) = self.proxy(request.uri()) else { return self.direct.call(request) };
        let connector = self.through.iter().find(|(address, _)| address == proxy.url().expose());
        let Some((_, connector)) = connector else {
            // Going directly instead would pass by what the operator set up.
            let error =
                ThroughProxy { proxy: proxy.to_string(), source: "its address cannot be used".into() };
            return HttpConnectorFuture::ready(Err(ConnectorError::user(Box::new(error))));
        };
        let (answer, proxy) = (connector.call(request), proxy.to_string());
        HttpConnectorFuture::new(async move { answer.await.map_err(|error| named(error, proxy)) })
    }
}

/// A request that a proxy did not carry.
#[derive(Debug, thiserror::Error)]
#[error("through the proxy {proxy}")]
struct ThroughProxy {
    proxy: String,
    source: BoxError,
}

/// The same error with the proxy's name in its chain; its kind decides about another try, so it is kept.
fn named(error: ConnectorError, proxy: String) -> ConnectorError {
    let (timeout, io, user, other) = (error.is_timeout(), error.is_io(), error.is_user(), error.as_other());
    let error: BoxError = Box::new(ThroughProxy { proxy, source: error.into_source() });
    if timeout {
        ConnectorError::timeout(error)
    } else if io {
        ConnectorError::io(error)
    } else if user {
        ConnectorError::user(error)
    } else {
        ConnectorError::other(error, other)
    }
}
