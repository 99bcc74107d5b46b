//! What a script is given: exactly the agreed variables, each checked before anything is started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use voiceai_runtime::Secret;
use voiceai_scaler_core::Service;
use voiceai_scaler_core::name::{is_host_name, is_label_value, is_provider_id};
use voiceai_service::Secrets;

/// Where scripts find their tools. The service's own PATH is not handed on unless PROVIDER_ENV_PASS names it.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables that make a shell or the loader run code before the script's first line.
const NEVER_PASSED: [&str; 12] = [
    "BASH_ENV",
    "ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "IFS",
    "CDPATH",
    "GLOBIGNORE",
    "PROMPT_COMMAND",
    "PYTHONSTARTUP",
    "PERL5OPT",
    "NODE_OPTIONS",
];

/// True for a variable that PROVIDER_ENV_PASS may not name.
#[must_use]
pub fn is_never_passed(name: &str) -> bool {
    NEVER_PASSED.contains(&name)
        || name.starts_with("LD_")
        || name.starts_with("BASH_FUNC_")
        || name.is_empty()
        || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// What the label `managed-by` says.
pub(crate) const MANAGED_BY: &str = "voiceai-scaler";

/// The labels that mark a server as ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// Always `voiceai-scaler`.
    #[serde(rename = "managed-by")]
    pub managed_by: String,
    /// The server group.
    pub group: String,
    /// `voice` or `api`.
    pub role: String,
    /// The environment.
    pub environment: String,
    /// The operation that made the server.
    pub operation: String,
}

impl Labels {
    /// The labels of the server that `operation` made.
    #[must_use]
    pub fn new(group: &str, service: Service, environment: &str, operation: Uuid) -> Self {
        Self {
            managed_by: MANAGED_BY.to_owned(),
            group: group.to_owned(),
            role: service.as_str().to_owned(),
            environment: environment.to_owned(),
            operation: operation.to_string(),
        }
    }

    fn values(&self) -> [&str; 5] {
        [&self.managed_by, &self.group, &self.role, &self.environment, &self.operation]
    }
}

/// Everything a call of a script says.
#[derive(Debug, Clone)]
pub struct Call {
    /// The operation that calls.
    pub operation: Uuid,
    /// The server's name.
    pub server: String,
    /// The server group.
    pub group: String,
    /// What the server does.
    pub service: Service,
    /// The provider's folder.
    pub provider: String,
    /// The group's configuration.
    pub config: Map<String, Value>,
    /// The machine type and location of this try.
    pub candidate: Map<String, Value>,
    /// The server's labels.
    pub labels: Labels,
    /// The start-up document; only for scaleUp.
    pub cloud_init: Option<PathBuf>,
    /// The provider's id, once known.
    pub provider_id: Option<String>,
}

/// What all calls of a process share.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// ENVIRONMENT.
    pub environment: String,
    /// HTTP_PROXY, HTTPS_PROXY and NO_PROXY in both spellings, as far as they are set.
    pub proxy: Vec<(&'static str, Secret)>,
    /// What PROVIDER_ENV_PASS names, with its values.
    pub passed: Vec<(String, OsString)>,
    /// Each provider's own credentials and endpoint.
    pub credentials: BTreeMap<String, Vec<(String, Secret)>>,
    /// Credentials that changed since the start; each stands in for the one of its name above.
    pub secrets: Option<Secrets>,
}

impl Surroundings {
    /// The whole environment of one call.
    ///
    /// # Errors
    /// The first name, label or id that must not reach a shell.
    pub fn of(&self, call: &Call) -> Result<Vec<(String, OsString)>, String> {
        check(call, &self.environment)?;
        let mut all = self.shared(&call.provider);
        // Last, so that nothing passed on can stand in for what the contract says.
        let mut set = |name: &str, value: OsString| set(&mut all, name, value);
        set("OPERATION_ID", call.operation.to_string().into());
        set("INSTANCE_NAME", call.server.clone().into());
        set("GROUP_NAME", call.group.clone().into());
        set("SERVICE", call.service.as_str().into());
        set("ENVIRONMENT", self.environment.clone().into());
        set("PROVIDER_CONFIG", json(&call.config).into());
        set("CANDIDATE", json(&call.candidate).into());
        set("LABELS", json(&call.labels).into());
        if let Some(file) = &call.cloud_init {
            set("CLOUD_INIT_FILE", file.into());
        }
        if let Some(id) = &call.provider_id {
            set("PROVIDER_ID", id.into());
        }
        Ok(all)
    }

    /// The whole environment of `list.sh`: no server, and as LABELS those that every server of ours in this environment bears.
    ///
    /// # Errors
    /// The name that must not reach a shell.
    pub fn of_list(
        &self,
        provider: &str,
        config: &Map<String, Value>,
    ) -> Result<Vec<(String, OsString)>, String> {
        if !is_host_name(provider) || !is_label_value(&self.environment) {
            return Err("the provider's name or ENVIRONMENT may not be handed to a script".to_owned());
        }
        let mut all = self.shared(provider);
        let labels = json!({"managed-by": MANAGED_BY, "environment": self.environment});
        set(&mut all, "OPERATION_ID", Uuid::now_v7().to_string().into());
        set(&mut all, "ENVIRONMENT", self.environment.clone().into());
        set(&mut all, "PROVIDER_CONFIG", json(config).into());
        set(&mut all, "LABELS", labels.to_string().into());
        Ok(all)
    }

    /// What every script of a provider is given.
    fn shared(&self, provider: &str) -> Vec<(String, OsString)> {
        let mut all: Vec<(String, OsString)> = vec![("PATH".into(), PATH.into())];
        for (name, value) in &self.passed {
            set(&mut all, name, value.clone());
        }
        for (name, value) in &self.proxy {
            set(&mut all, name, value.expose().into());
        }
        let now = self.secrets.as_ref().map(Secrets::current);
        for (name, value) in self.credentials.get(provider).into_iter().flatten() {
            let newer = now.as_ref().and_then(|values| values.named(name));
            set(&mut all, name, newer.as_ref().unwrap_or(value).expose().into());
        }
        // A session's token belongs to the key it came with, and to no other.
        if self.has_changed(provider, "AWS_ACCESS_KEY_ID") {
            all.retain(|(name, _)| name != "AWS_SESSION_TOKEN");
        }
        all
    }

    fn has_changed(&self, provider: &str, name: &str) -> bool {
        let first = self.credentials.get(provider).into_iter().flatten().find(|(have, _)| have == name);
        let now = self.secrets.as_ref().and_then(|secrets| secrets.current().named(name));
        first.zip(now).is_some_and(|((_, first), now)| first.expose() != now.expose())
    }

    /// Replaces every secret value in `text`.
    #[must_use]
    pub fn mask(&self, text: &str) -> String {
        let now = self.secrets.as_ref().map(Secrets::current);
        let newer = |name: &str| now.as_ref()?.named(name);
        let of_providers = self.credentials.values().flatten();
        let secrets = of_providers
            // Where something is may be read in a log.
            .filter(|(name, _)| !name.ends_with("REGION") && !name.contains("ENDPOINT"))
            // The older one, too: a script that was started with it may still be talking.
            .flat_map(|(name, value)| [Some(value.clone()), newer(name)])
            .filter_map(|value| Some(value?.expose().to_owned()))
            .chain(self.passed.iter().filter_map(|(_, value)| value.to_str().map(str::to_owned)))
            .chain(self.proxy.iter().filter_map(|(_, value)| login(value.expose())).flatten());
        secrets
            // A short value would blank out innocent words.
            .filter(|value| value.len() >= 6)
            .fold(text.to_owned(), |text, value| text.replace(&value, "[REDACTED]"))
    }
}

fn set(all: &mut Vec<(String, OsString)>, name: &str, value: OsString) {
    all.retain(|(have, _)| have != name);
    all.push((name.to_owned(), value));
}

/// User and password of a proxy's URL, and the password alone, as a program might print them.
fn login(url: &str) -> Option<[String; 2]> {
    let (_, rest) = url.split_once("://")?;
    let (login, _) = rest.rsplit_once('@')?;
    let password = login.split_once(':').map_or(login, |(_, password)| password);
    Some([login.to_owned(), password.to_owned()])
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

fn check(call: &Call, environment: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what} may not be handed to a script"));
    if !is_host_name(&call.server) {
        return wrong("the server's name");
    }
    if !is_label_value(&call.group) {
        return wrong("the group's name");
    }
    if !is_host_name(&call.provider) {
        return wrong("the provider's name");
    }
    if !is_label_value(environment) {
        return wrong("ENVIRONMENT");
    }
    if let Some(bad) = call.labels.values().into_iter().find(|value| !is_label_value(value)) {
        return Err(format!("the label {bad:?} may not be handed to a script"));
    }
    if call.provider_id.as_deref().is_some_and(|id| !is_provider_id(id)) {
        return wrong("the provider's id");
    }
    Ok(())
}

/// The script of a provider, if its folder has it.
#[must_use]
pub fn script(folder: &Path, provider: &str, name: &str) -> PathBuf {
    folder.join(provider).join(name)
}
