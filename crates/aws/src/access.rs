//! What every client of AWS has in common: where, as whom, and by which way.

use std::time::Duration;

use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ssm::config::Credentials;
use voiceai_config::Reader;
use voiceai_config::catalogue::platform;
use voiceai_egress::Rule;
use voiceai_runtime::Secret;

use crate::way;

/// How AWS, or a server that stands in for it, is reached.
#[derive(Debug, Clone)]
pub struct AwsAccess {
    /// `AWS_REGION`.
    pub region: String,
    /// A server other than AWS's own.
    pub endpoint: Option<String>,
    /// Keys; without them the standard AWS credential chain is used.
    pub keys: Option<(Secret, Secret)>,
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
    /// Reads the settings.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            region: reader.get(&platform::AWS_REGION),
            endpoint: None,
            keys: None,
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
        if let Some((access, secret)) = &self.keys {
            let keys = Credentials::new(access.expose(), secret.expose(), None, None, "settings");
            loader = loader.credentials_provider(keys);
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
