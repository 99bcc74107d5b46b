//! The platform's stores of settings: SSM parameters under `/<NAMESPACE>/<service>/`, and secrets whose names begin with
//! `<NAMESPACE>/<service>/`. Both are read whole or not at all.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType};
use aws_sdk_ssm::config::http::HttpResponse;
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use voiceai_config::catalogue::platform;
use voiceai_config::{
    Binary, Content, Environment, ExternalSecret, Held, Layer, LayerError, LayerKind, ReadLayer, Reader,
    Report, Resolved, SERVICE, Warning,
};
use voiceai_runtime::Secret;

use crate::access::{AwsAccess, Patience};
use crate::failure::CallError;

const CALL_MAX: Duration = Duration::from_secs(20);
/// What an environment without the right to list secrets keeps everything in.
const CONVENTIONAL: &str = "secrets";

/// Where the platform keeps the settings of one service.
#[derive(Debug, Clone)]
pub struct PlatformSettings {
    /// `NAMESPACE`, such as `voiceai/staging`, without slashes at its ends.
    pub namespace: String,
    /// The service's name on the platform.
    pub service: String,
    /// Region, credentials and the way out.
    pub access: AwsAccess,
    /// Longest time one call may take with all its tries: a start waits for it. Default 20 s.
    pub call_limit: Duration,
}

impl PlatformSettings {
    /// Reads the settings; nothing when `NAMESPACE` is unset.
    pub fn read(reader: &Reader<'_>) -> Option<Self> {
        let namespace = reader.optional(&platform::NAMESPACE)?;
        Some(Self {
            namespace: namespace.trim_matches('/').to_owned(),
            service: SERVICE.to_owned(),
            access: AwsAccess::read(reader),
            call_limit: CALL_MAX,
        })
    }

    fn prefix(&self) -> String {
        format!("{}/{}/", self.namespace, self.service)
    }
}

/// The settings could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// What says where the layers are is itself wrong.
    #[error(transparent)]
    Invalid(#[from] Report),
    /// Layers could not be read; each of them is named.
    #[error("{}", .0.iter().map(LayerError::to_string).collect::<Vec<_>>().join("; "))]
    Layers(Vec<LayerError>),
}

/// All settings of `binary`: the environment, and with `NAMESPACE` in it the platform's stores above.
///
/// # Errors
/// When `NAMESPACE` or what belongs to it is wrong, or a store cannot be read whole.
pub async fn resolve(binary: Binary) -> Result<Resolved, ResolveError> {
    let environment = Resolved::from_environment(binary);
    if environment.shown(platform::NAMESPACE.declaration.name).is_none() {
        // What else may be wrong is found together with everything else.
        return Ok(environment);
    }
    match environment.read(PlatformSettings::read)?.settings {
        None => Ok(environment),
        Some(settings) => resolve_from(binary, &Environment, &settings).await,
    }
}

/// All settings of `binary` from `bootstrap` and the platform's stores above it, each read once.
///
/// # Errors
/// Every layer that cannot be read whole.
pub async fn resolve_from(
    binary: Binary,
    bootstrap: &dyn Layer,
    settings: &PlatformSettings,
) -> Result<Resolved, ResolveError> {
    let (parameters, secrets) = platform_layers(settings).await;
    let read = tokio::join!(Held::of(bootstrap), Held::of(&parameters), Held::of(&secrets));
    let (bootstrap, parameters, held) = match read {
        (Ok(bootstrap), Ok(parameters), Ok(secrets)) => (bootstrap, parameters, secrets),
        (bootstrap, parameters, secrets) => {
            let failed = [bootstrap.err(), parameters.err(), secrets.err()];
            return Err(ResolveError::Layers(failed.into_iter().flatten().collect()));
        }
    };
    let whole = async |layers: &[&dyn Layer]| {
        let resolved = Resolved::from_layers(binary, layers).await;
        resolved.map_err(|error| ResolveError::Layers(vec![error]))
    };
    let resolved = whole(&[&bootstrap, &parameters, &held]).await?;
    let wanted = resolved.external_secrets();
    if wanted.is_empty() {
        return Ok(resolved);
    }
    let outside = OutsideLayer { client: secrets.client, wanted };
    whole(&[&bootstrap, &parameters, &held, &outside]).await
}

/// The platform's two layers of settings, in any order: their kinds give it.
pub async fn platform_layers(settings: &PlatformSettings) -> (ParameterLayer, SecretLayer) {
    let shared = settings.access.load(Patience::of_a_call(settings.call_limit)).await;
    let parameters =
        ParameterLayer { client: aws_sdk_ssm::Client::new(&shared), path: format!("/{}", settings.prefix()) };
    let secrets =
        SecretLayer { client: aws_sdk_secretsmanager::Client::new(&shared), prefix: settings.prefix() };
    (parameters, secrets)
}

/// SSM parameters: the last part of a parameter's name is the variable.
#[derive(Debug, Clone)]
pub struct ParameterLayer {
    client: aws_sdk_ssm::Client,
    path: String,
}

impl ParameterLayer {
    async fn content(&self) -> Result<Content, LayerError> {
        let mut found = BTreeMap::new();
        // Not the SDK's paginator: it takes a repeated token for the end, and part of the parameters for all of them.
        let mut token: Option<String> = None;
        loop {
            let request = self.client.get_parameters_by_path().path(&self.path).recursive(true);
            let page = request.with_decryption(true).set_next_token(token.clone()).send().await;
            let page = page.map_err(|error| failed(&self.origin(), "ssm:GetParametersByPath", &error))?;
            for parameter in page.parameters.unwrap_or_default() {
                if let (Some(name), Some(value)) = (parameter.name, parameter.value) {
                    found.insert(name, value);
                }
            }
            match page.next_token {
                None => break,
                next if next == token => return Err(endless(&self.origin(), "ssm:GetParametersByPath")),
                next => token = next,
            }
        }
        let mut content = Merging::new(self.origin());
        for (name, value) in found {
            let variable = name.rsplit('/').next().unwrap_or(&name).to_owned();
            content.add(&name, variable, value);
        }
        Ok(content.done())
    }
}

impl Layer for ParameterLayer {
    fn kind(&self) -> LayerKind {
        LayerKind::Ssm
    }

    fn origin(&self) -> String {
        format!("SSM {}", self.path)
    }

    fn read(&self) -> ReadLayer<'_> {
        Box::pin(self.content())
    }
}

/// Secrets: each is a JSON object whose keys are variables.
#[derive(Debug, Clone)]
pub struct SecretLayer {
    client: aws_sdk_secretsmanager::Client,
    prefix: String,
}

impl SecretLayer {
    async fn content(&self) -> Result<Content, LayerError> {
        let mut content = Merging::new(self.origin());
        let names = match self.names().await? {
            Some(names) => names,
            None => {
                content.warn("NAMESPACE", format!(
                    "secretsmanager:ListSecrets is denied, so only the secret {}{CONVENTIONAL} is read; grant it to have every secret under {} found",
                    self.prefix, self.prefix
                ));
                vec![format!("{}{CONVENTIONAL}", self.prefix)]
            }
        };
        let listed = content.content.warnings.is_empty();
        for name in names {
            let Some(text) = self.value(&name, listed).await? else { continue };
            for (variable, value) in variables(&text).map_err(|reason| self.malformed(&name, reason))? {
                content.add(&name, variable, value);
            }
        }
        Ok(content.done())
    }

    /// `None` when this host may not list secrets.
    async fn names(&self) -> Result<Option<Vec<String>>, LayerError> {
        let filter = Filter::builder().key(FilterNameStringType::Name).values(&self.prefix).build();
        let mut names = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let request = self.client.list_secrets().filters(filter.clone()).set_next_token(token.clone());
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) if is_denied(&error) => return Ok(None),
                Err(error) => return Err(failed(&self.origin(), "secretsmanager:ListSecrets", &error)),
            };
            names.extend(page.secret_list.unwrap_or_default().into_iter().filter_map(|secret| secret.name));
            match page.next_token {
                None => break,
                next if next == token => return Err(endless(&self.origin(), "secretsmanager:ListSecrets")),
                next => token = next,
            }
        }
        // The service's own filter ignores case.
        names.retain(|name| name.starts_with(&self.prefix));
        names.sort_unstable();
        Ok(Some(names))
    }

    /// `None` when a secret that was only guessed does not exist.
    async fn value(&self, name: &str, listed: bool) -> Result<Option<Secret>, LayerError> {
        let got = self.client.get_secret_value().secret_id(name).send().await;
        let place = format!("Secrets Manager {name}");
        match got {
            Ok(value) => match value.secret_string {
                Some(text) => Ok(Some(Secret::new(text))),
                None => Err(self.malformed(name, "it is binary")),
            },
            Err(error) if !listed && error.code() == Some("ResourceNotFoundException") => Ok(None),
            Err(error) => Err(failed(&place, "secretsmanager:GetSecretValue", &error)),
        }
    }

    fn malformed(&self, name: &str, reason: &str) -> LayerError {
        LayerError {
            origin: format!("Secrets Manager {name}"),
            call: "secretsmanager:GetSecretValue".to_owned(),
            reason: format!("the secret is no JSON object of variables: {reason}"),
            remedy: format!("Store it as {{\"NAME\":\"value\"}}, or move it out of {}.", self.prefix),
        }
    }
}

impl Layer for SecretLayer {
    fn kind(&self) -> LayerKind {
        LayerKind::SecretsManager
    }

    fn origin(&self) -> String {
        format!("Secrets Manager {}", self.prefix)
    }

    fn read(&self) -> ReadLayer<'_> {
        Box::pin(self.content())
    }
}

/// Secrets outside the service's own prefix, which settings name.
#[derive(Debug)]
struct OutsideLayer {
    client: aws_sdk_secretsmanager::Client,
    wanted: Vec<ExternalSecret>,
}

impl OutsideLayer {
    async fn content(&self) -> Result<Content, LayerError> {
        let mut content = Content::default();
        for secret in &self.wanted {
            let origin = format!("Secrets Manager {} (named by {})", secret.name, secret.named_by);
            let call = "secretsmanager:GetSecretValue";
            let got = self.client.get_secret_value().secret_id(&secret.name).send().await;
            let value = got.map_err(|error| failed(&origin, call, &error))?;
            let keys = value.secret_string.as_deref().and_then(|text| {
                serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).ok()
            });
            let Some(keys) = keys else {
                return Err(LayerError {
                    origin,
                    call: call.to_owned(),
                    reason: "the secret is no JSON object".to_owned(),
                    remedy: format!("Correct {}, or what the secret holds.", secret.named_by),
                });
            };
            for (variable, key) in &secret.keys {
                let text = match keys.get(*key) {
                    Some(serde_json::Value::String(text)) => text.clone(),
                    Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => {
                        value.to_string()
                    }
                    _ => {
                        let message = format!("the secret {} has no text under `{key}`", secret.name);
                        let name = secret.named_by.to_owned();
                        content.warnings.push(Warning { name, message, nearest: None });
                        continue;
                    }
                };
                content.values.insert((*variable).to_owned(), Secret::new(text));
            }
        }
        Ok(content)
    }
}

impl Layer for OutsideLayer {
    fn kind(&self) -> LayerKind {
        LayerKind::ExternalSecret
    }

    fn origin(&self) -> String {
        let names: Vec<_> = self.wanted.iter().map(|secret| secret.name.as_str()).collect();
        format!("Secrets Manager {}", names.join(", "))
    }

    fn read(&self) -> ReadLayer<'_> {
        Box::pin(self.content())
    }
}

/// The variables of a secret. What is wrong is said without any of its text.
fn variables(text: &Secret) -> Result<Vec<(String, String)>, &'static str> {
    use serde_json::Value;
    let Ok(Value::Object(keys)) = serde_json::from_str(text.expose()) else {
        return Err("it is something else");
    };
    keys.into_iter()
        .filter_map(|(name, value)| match value {
            Value::Null => None,
            Value::String(text) => Some(Ok((name, text))),
            Value::Bool(_) | Value::Number(_) => Some(Ok((name, value.to_string()))),
            Value::Array(_) | Value::Object(_) => {
                Some(Err("one of its values is itself an object or a list"))
            }
        })
        .collect()
}

/// Puts a layer together from places read in the order of their names: the last one wins, and a difference is told.
struct Merging {
    origin: String,
    content: Content,
    from: BTreeMap<String, String>,
}

impl Merging {
    fn new(origin: String) -> Self {
        Self { origin, content: Content::default(), from: BTreeMap::new() }
    }

    fn add(&mut self, place: &str, variable: String, value: String) {
        let before = self.content.values.insert(variable.clone(), Secret::new(value));
        let other = self.from.insert(variable.clone(), place.to_owned());
        if let (Some(before), Some(other)) = (before, other)
            && self.content.values.get(&variable).is_some_and(|now| now.expose() != before.expose())
        {
            let message =
                format!("{} gives it twice: {place} wins over {other}; delete one of them", self.origin);
            self.warn(&variable, message);
        }
    }

    fn warn(&mut self, name: &str, message: String) {
        self.content.warnings.push(Warning { name: name.to_owned(), message, nearest: None });
    }

    fn done(self) -> Content {
        self.content
    }
}

fn is_denied<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    error.code().is_some_and(|code| code.contains("AccessDenied"))
}

/// The pages do not end: going on would take for ever, and stopping would use part of the values for all of them.
fn endless(origin: &str, call: &str) -> LayerError {
    LayerError {
        origin: origin.to_owned(),
        call: call.to_owned(),
        reason: "a page points at itself as the next one".to_owned(),
        remedy: "Start again; if it stays, look at what stands between this host and AWS.".to_owned(),
    }
}

fn failed<E>(origin: &str, call: &'static str, error: &SdkError<E, HttpResponse>) -> LayerError
where
    E: ProvideErrorMetadata + Error + fmt::Debug + 'static,
{
    let CallError { call, reason, remedy } = CallError::of(call, error);
    LayerError { origin: origin.to_owned(), call: call.to_owned(), reason, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, &'static str> {
        variables(&Secret::new(text))
    }

    #[test]
    fn a_secrets_keys_are_variables() {
        let found = read(r#"{"A":"x","B":5,"C":true,"D":null}"#).expect("an object");
        let pairs: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "x"), ("B", "5"), ("C", "true")]);
        for wrong in ["hunter2", "[1]", "\"x\"", "", r#"{"A":{"B":1}}"#] {
            let error = read(wrong).expect_err(wrong);
            assert!(!error.contains("hunter2"));
        }
    }

    #[test]
    fn two_places_that_differ_are_told_and_the_last_wins() {
        let mut merging = Merging::new("SSM /x/".into());
        merging.add("/x/A", "A".into(), "1".into());
        merging.add("/x/y/A", "A".into(), "1".into());
        assert!(merging.content.warnings.is_empty(), "the same value twice is no contradiction");
        merging.add("/x/z/A", "A".into(), "2".into());
        let content = merging.done();
        assert_eq!(content.values["A"].expose(), "2");
        assert!(content.warnings[0].message.contains("/x/z/A wins over /x/y/A"), "{:?}", content.warnings);
    }
}
