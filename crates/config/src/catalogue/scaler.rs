//! The control loop of voiceai-scaler.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use super::form::{HTTP_ORIGIN, is_http_origin};
use crate::setting::{Binaries, settings};
use crate::value::kinds::{duration, integer, list, millis, path, secret, secret_url, text, url};

settings! {
    "Scaling", "The control loop of voiceai-scaler. Thresholds, sizes and cooldowns are the server group's own columns.";

    /// How often the leader looks at every group and decides.
    SCALING_EVALUATION_INTERVAL_MS: Duration = millis().default("30000").between(100, 3_600_000).only(Binaries::Scaler);
    /// Folder with one folder per provider, which holds `scaleUp.sh`, `scalingStatus.sh` and `scaleDown.sh`.
    PROVIDER_SCRIPTS_DIR: PathBuf = path().default("/opt/voiceai/providers").only(Binaries::Scaler);
    /// Longest run of one provider script: then SIGTERM to its process group, and SIGKILL ten seconds later.
    PROVIDER_SCRIPT_TIMEOUT_MS: Duration = millis().default("300000").between(1_000, 3_600_000).only(Binaries::Scaler);
    /// Further variables of this process that provider scripts get; they get nothing else of its environment.
    PROVIDER_ENV_PASS: Vec<String> = list().only(Binaries::Scaler);
    /// Program that prints the cloud-config of a new server, from the bootstrap variables; used for `hetzner` and `aws`, and where it is set for every provider but `local`.
    CLOUD_INIT_SCRIPT: PathBuf = path().only(Binaries::Scaler)
        .computed_default("`generate-cloud-init.sh` beside PROVIDER_SCRIPTS_DIR");
    /// Registry of the service images that a new server starts; handed to `CLOUD_INIT_SCRIPT`.
    ECR_REGISTRY: String = text().bootstrap().only(Binaries::Scaler);
    /// Tag of those images.
    ECR_TAG: String = text().bootstrap().only(Binaries::Scaler);
    /// Bucket of the host configuration that a new server fetches; handed to `CLOUD_INIT_SCRIPT`.
    CONFIG_BUCKET: String = text().only(Binaries::Scaler);
    /// Version of that configuration.
    CONFIG_REF: String = text().only(Binaries::Scaler);
    /// SSH key of the bastion, which may log in to new servers.
    BASTION_PUBLIC_KEY: String = text().only(Binaries::Scaler);
    /// Beginning of the Redis keys under which servers report their load.
    HEARTBEAT_KEY_PREFIX: String = text().default("voiceai:heartbeat:").only(Binaries::Scaler);
    /// A heartbeat older than this says nothing: the server's load is unknown.
    HEARTBEAT_STALE_AFTER: Duration = duration().default("60s").between(1_000, 3_600_000).only(Binaries::Scaler);
    /// How long a new server may take from its creation to its first heartbeat; then it is rolled back.
    HEARTBEAT_WAIT_TIMEOUT: Duration = duration().default("5m").between(1_000, 86_400_000).only(Binaries::Scaler);
    /// Longest wait for the running calls of a server that is taken away.
    DRAIN_TIMEOUT: Duration = duration().default("60m").between(0, 604_800_000).only(Binaries::Scaler);
    /// How often the status of a server that is being created or deleted is asked for.
    SCALING_STATUS_POLL_INTERVAL_MS: Duration = millis().default("5000").between(50, 600_000).only(Binaries::Scaler);
    /// Most servers over all groups together; nothing is bought above it.
    SCALING_FLEET_MAX: u32 = integer().between(1, 1_000_000).only(Binaries::Scaler);
    /// How often each provider's `list.sh` is asked for servers of ours that the database does not know.
    ORPHAN_SWEEP_INTERVAL: Duration = duration().default("5m").between(200, 86_400_000).only(Binaries::Scaler);
    /// How long servers that are gone, their finished operations with every step, and decisions that changed something stay in the database. Decisions that changed nothing stay 2 days.
    SCALING_HISTORY_RETENTION: Duration = duration().default("90d").between(86_400_000, 315_360_000_000).only(Binaries::Scaler);
    /// Token of the Hetzner Cloud project, for the scripts of the provider `hetzner`.
    HETZNER_API_TOKEN: Secret = secret().only(Binaries::Scaler).rotates();
    /// Address of a Hetzner Cloud API other than the public one, for the scripts of the provider `hetzner`.
    HCLOUD_ENDPOINT: Url = url().only(Binaries::Scaler).check(HTTP_ORIGIN, is_http_origin);
    /// Beginning of the Redis keys of Kamailio's dispatcher records.
    DISPATCHER_KEY_PREFIX: String = text().default("dispatcher:entry::").only(Binaries::Scaler);
    /// The Redis that Kamailio reads, with its database number.
    DISPATCHER_REDIS_URL: Secret = secret_url().only(Binaries::Scaler)
        .computed_default("database 1 of the main Redis; required with Redis Cluster");
    /// Addresses of the Kamailio proxies' JSON-RPC over HTTP, a comma list, each with user and password where asked for; each is then told to reload, its answer is verified, and its dialogs count in a drain. Unset: Kamailio pulls by the generation.
    KAMAILIO_RPC_URLS: Secret = secret_url().only(Binaries::Scaler)
        .check("http:// or https:// URLs, separated by commas, such as http://10.0.0.4:5062/RPC", is_rpc);
    /// Longest wait for one answer of a proxy.
    KAMAILIO_RPC_TIMEOUT_MS: Duration = millis().default("2000").between(50, 60_000).only(Binaries::Scaler);
    /// Profile of Kamailio's `dialog` module that counts the calls of each server, by its name or by its destination.
    KAMAILIO_DIALOG_PROFILE: String = text().default("voicenode").only(Binaries::Scaler);
}

fn is_rpc(text: &str) -> bool {
    let web = |url: &str| {
        Url::parse(url.trim()).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    };
    text.split(',').all(web)
}
