//! Keys that change while the service runs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_types::config_bag::ConfigBag;
use voiceai_runtime::Secret;

/// Least time between two looks for newer keys after refusals: a store says the same 403 of an object that these keys may not
/// see, and must not be made slow by it.
const LOOKS_APART: Duration = Duration::from_secs(60);

/// Access key and secret key.
pub type KeyPair = (Secret, Secret);

/// The future of [`KeySource::keys`].
pub type ReadKeys<'a> = Pin<Box<dyn Future<Output = Option<KeyPair>> + Send + 'a>>;

/// Where keys that change while the service runs are to be had. Asked before each request, so it answers from memory unless
/// the last keys were refused.
pub trait KeySource: fmt::Debug + Send + Sync {
    /// The keys in use now; `None`: those of the start. With `refused` newer ones are looked for first.
    fn keys(&self, refused: bool) -> ReadKeys<'_>;
}

/// Keys of the start, and where newer ones come from. Clones share the word that the last ones were refused.
#[derive(Clone, Debug)]
pub(crate) struct Renewed {
    first: KeyPair,
    source: Arc<dyn KeySource>,
    refused: Arc<AtomicBool>,
    /// When newer keys were last looked for after a refusal.
    looked: Arc<Mutex<Option<Instant>>>,
}

impl Renewed {
    pub(crate) fn new(first: KeyPair, source: Arc<dyn KeySource>) -> Self {
        Self { first, source, refused: Arc::default(), looked: Arc::default() }
    }

    /// True when the last answer refused the keys, and newer ones were not looked for a moment ago.
    fn must_look(&self) -> bool {
        if !self.refused.swap(false, Ordering::Relaxed) {
            return false;
        }
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looked.is_none_or(|at| at.elapsed() >= LOOKS_APART);
        if due {
            *looked = Some(Instant::now());
        }
        due
    }

    /// `client`, watched for refusals.
    pub(crate) fn watched(&self, client: SharedHttpClient) -> SharedHttpClient {
        SharedHttpClient::new(Watched { client, refused: Arc::clone(&self.refused) })
    }

    async fn now(&self) -> Credentials {
        let (access, secret) = self.source.keys(self.must_look()).await.unwrap_or_else(|| self.first.clone());
        Credentials::new(access.expose(), secret.expose(), None, None, "settings")
    }
}

impl ProvideCredentials for Renewed {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async { Ok(self.now().await) })
    }
}

/// Passes everything on, and remembers an answer that refuses whoever asked.
#[derive(Debug)]
struct Watched {
    client: SharedHttpClient,
    refused: Arc<AtomicBool>,
}

impl HttpClient for Watched {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connector = self.client.http_connector(settings, components);
        SharedHttpConnector::new(WatchedConnector { connector, refused: Arc::clone(&self.refused) })
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.client.validate_base_client_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.client.connector_metadata()
    }
}

#[derive(Debug)]
struct WatchedConnector {
    connector: SharedHttpConnector,
    refused: Arc<AtomicBool>,
}

impl HttpConnector for WatchedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (answer, refused) = (self.connector.call(request), Arc::clone(&self.refused));
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            // Keys that are not known any more, and keys that may not do this: which one, the next look at the stores tells.
            if matches!(answer.status().as_u16(), 401 | 403) {
                refused.store(true, Ordering::Relaxed);
            }
            Ok(answer)
        })
    }
}
