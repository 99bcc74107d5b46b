//! What every client of AWS has in common: where, as whom, and by which way.

use std::sync::Arc;
use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ssm::config::Credentials;
use voiceai_config::catalogue::platform;
use voiceai_config::{LayerKind, Reader};
use voiceai_egress::Rule;

use crate::keys::{KeyPair, KeySource, Renewed};
use crate::way;

/// How AWS, or a server that stands in for it, is reached.
#[derive(Debug, Clone)]
pub struct AwsAccess {
    /// `AWS_REGION`.
    pub region: String,
    /// A server other than AWS's own.
    pub endpoint: Option<String>,
    /// Keys; without them the standard AWS credential chain is used.
    pub keys: Option<KeyPair>,
    /// Where newer keys than those come from while the service runs.
    pub renewed: Option<Arc<dyn KeySource>>,
    /// `AWS_USE_INSTANCE_PROFILE`: only the instance's own role counts, whatever else the chain would find.
    pub instance_profile: bool,
    /// The way out. Requests for the instance's own role are never proxied.
    pub way: Rule,
}

/// How long a caller waits, and how often it is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Tries of one call, the first included: the SDK waits between them, longer each time, and longer still when throttled.
    pub(crate) attempts: u32,
    /// Longest time until a connection stands.
    pub(crate) connect: Duration,
    /// Longest time one try may take.
    pub(crate) attempt: Duration,
    /// Longest time one call may take with all its tries; unbounded where it carries a body of any length.
    pub(crate) call: Option<Duration>,
}

impl Patience {
    /// Of a short question that a person or a start waits for.
    pub(crate) const fn of_a_call(limit: Duration) -> Self {
        Self {
            attempts: 4,
            connect: Duration::from_secs(3),
            attempt: Duration::from_secs(5),
            call: Some(limit),
        }
    }
}

impl AwsAccess {
    /// Reads the settings. Keys of the environment are the chain's own, with the session token that may belong to them; keys
    /// of a higher layer stand in for whatever the chain would find.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            region: reader.get(&platform::AWS_REGION),
            endpoint: None,
            keys: keys(reader),
            renewed: None,
            instance_profile: reader.get(&platform::AWS_USE_INSTANCE_PROFILE),
            way: Rule::read(reader),
        }
    }

    pub(crate) async fn load(&self, patience: Patience) -> SdkConfig {
        let mut timeouts = TimeoutConfig::builder()
            .connect_timeout(patience.connect)
            .operation_attempt_timeout(patience.attempt);
        timeouts.set_operation_timeout(patience.call);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .http_client(way::http_client(&self.way))
            .retry_config(RetryConfig::standard().with_max_attempts(patience.attempts))
            .timeout_config(timeouts.build());
        if let Some(keys) = &self.keys {
            let (access, secret) = keys;
            if let Some(source) = &self.renewed {
                let renewed = Renewed::new(keys.clone(), Arc::clone(source));
                // The source has them in memory: a cache would only keep old ones.
                loader = loader
                    .http_client(renewed.watched(way::http_client(&self.way)))
                    .identity_cache(IdentityCache::no_cache())
                    .credentials_provider(renewed);
            } else {
                let keys = Credentials::new(access.expose(), secret.expose(), None, None, "settings");
                loader = loader.credentials_provider(keys);
            }
        } else if self.instance_profile {
            let near = ProviderConfig::without_region()
                .with_http_client(way::direct())
                .with_region(Some(Region::new(self.region.clone())));
            let role =
                aws_config::imds::credentials::ImdsCredentialsProvider::builder().configure(&near).build();
            loader = loader.credentials_provider(role);
        }
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        loader.load().await
    }
}

fn keys(reader: &Reader<'_>) -> Option<KeyPair> {
    let above_the_environment =
        reader.layer(&platform::AWS_ACCESS_KEY_ID).is_some_and(|layer| layer > LayerKind::Bootstrap);
    // Half a pair, and keys beside the instance's own role, are reported as such.
    let pair =
        reader.optional(&platform::AWS_ACCESS_KEY_ID).zip(reader.optional(&platform::AWS_SECRET_ACCESS_KEY));
    pair.filter(|_| above_the_environment)
}
