use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io::Read;
use std::pin::Pin;

use voiceai_runtime::Secret;

use crate::catalogue;
use crate::report::Warning;

/// The layers, lowest first: where two give a value, the later one wins. [`Default`](Self::Default) counts only when no other
/// layer gives a value, and [`Composed`](Self::Composed) is built from all the others and never replaces a value they give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerKind {
    /// The declared default.
    Default,
    /// The environment of the process.
    Bootstrap,
    /// SSM parameters.
    Ssm,
    /// Secrets found under the service's prefix.
    SecretsManager,
    /// A secret named by the operator.
    ExternalSecret,
    /// Built from other settings.
    Composed,
}

impl LayerKind {
    /// The word used in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Bootstrap => "environment",
            Self::Ssm => "ssm",
            Self::SecretsManager => "secrets_manager",
            Self::ExternalSecret => "external_secret",
            Self::Composed => "composed",
        }
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one layer holds. Every value is kept as a secret: a layer does not know which ones are.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Variable to value.
    pub values: BTreeMap<String, Secret>,
    /// Variables that are there and could not be read, with the reason: each is a violation when it is a setting.
    pub unreadable: BTreeMap<String, String>,
    /// Oddities that the layer saw while it was read.
    pub warnings: Vec<Warning>,
}

/// A layer that could not be read at all. The start ends: to go on with lower layers would be to run on old values.
#[derive(Debug, thiserror::Error)]
#[error("read {origin}: {call} failed: {reason}. {remedy}")]
pub struct LayerError {
    /// The place, such as `SSM /voiceai/staging/ops/`.
    pub origin: String,
    /// The call that failed, such as `ssm:GetParametersByPath`.
    pub call: String,
    /// Why, without any value.
    pub reason: String,
    /// What to do, as an order.
    pub remedy: String,
}

/// The future of [`Layer::read`].
pub type ReadLayer<'a> = Pin<Box<dyn Future<Output = Result<Content, LayerError>> + Send + 'a>>;

/// A source of values.
pub trait Layer: Send + Sync {
    /// Its place in the order.
    fn kind(&self) -> LayerKind;

    /// Where it reads, for people.
    fn origin(&self) -> String;

    /// Reads everything the layer holds, whole or not at all.
    fn read(&self) -> ReadLayer<'_>;
}

const SECRET_FILE_LARGEST: u64 = 64 * 1024;

/// The environment of this process. A secret may be given as a file: `REDIS_PASSWORD_FILE=/run/secrets/redis` stands for
/// `REDIS_PASSWORD`, without the file's last line break.
#[derive(Debug, Clone, Copy, Default)]
pub struct Environment;

impl Environment {
    pub(crate) fn content() -> Content {
        Self::content_of(std::env::vars_os())
    }

    fn content_of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Content {
        let mut content = Content::default();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => {
                    content.values.insert(name, Secret::new(value));
                }
                Err(_) => {
                    content.unreadable.insert(name, "it is not valid UTF-8".to_owned());
                }
            }
        }
        read_secret_files(&mut content);
        content
    }
}

impl Layer for Environment {
    fn kind(&self) -> LayerKind {
        LayerKind::Bootstrap
    }

    fn origin(&self) -> String {
        "the environment".to_owned()
    }

    fn read(&self) -> ReadLayer<'_> {
        Box::pin(std::future::ready(Ok(Self::content())))
    }
}

pub(crate) const FILE_SUFFIX: &str = "_FILE";

fn read_secret_files(content: &mut Content) {
    let secrets =
        catalogue::declarations().filter(|declaration| declaration.is_secret() && !declaration.is_pattern());
    for name in secrets.flat_map(|declaration| std::iter::once(&declaration.name).chain(declaration.aliases))
    {
        let variable = format!("{name}{FILE_SUFFIX}");
        let Some(path) = content.values.get(&variable).filter(|path| !path.is_empty()) else { continue };
        if content.values.get(*name).is_some_and(|value| !value.is_empty()) {
            content
                .unreadable
                .insert((*name).to_owned(), format!("{name} and {variable} are both set; keep one"));
            continue;
        }
        match read_secret_file(path.expose()) {
            Ok(secret) => {
                content.values.insert((*name).to_owned(), secret);
            }
            Err(error) => {
                content.unreadable.insert((*name).to_owned(), format!("the file {variable} names: {error}"));
            }
        }
    }
}

fn read_secret_file(path: &str) -> std::io::Result<Secret> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    let read = file.take(SECRET_FILE_LARGEST + 1).read_to_string(&mut text)?;
    if read as u64 > SECRET_FILE_LARGEST {
        return Err(std::io::Error::other(format!("larger than {SECRET_FILE_LARGEST} bytes")));
    }
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// A layer of given values: tests, and adapters that have read theirs already.
#[derive(Debug, Clone)]
pub struct Fixed {
    kind: LayerKind,
    origin: String,
    values: BTreeMap<String, Secret>,
}

impl Fixed {
    /// `pairs` as the layer `kind`, said to come from `origin`.
    pub fn new<N: Into<String>, V: Into<String>>(
        kind: LayerKind,
        origin: impl Into<String>,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let values = pairs.into_iter().map(|(name, value)| (name.into(), Secret::new(value))).collect();
        Self { kind, origin: origin.into(), values }
    }
}

impl Layer for Fixed {
    fn kind(&self) -> LayerKind {
        self.kind
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn read(&self) -> ReadLayer<'_> {
        let content = Content { values: self.values.clone(), ..Content::default() };
        Box::pin(std::future::ready(Ok(content)))
    }
}

/// A layer that has been read already.
#[derive(Debug, Clone)]
pub struct Held {
    kind: LayerKind,
    origin: String,
    content: Content,
}

impl Held {
    /// Reads `layer` once and keeps what it held.
    ///
    /// # Errors
    /// As the layer's own.
    pub async fn of(layer: &dyn Layer) -> Result<Self, LayerError> {
        let content = layer.read().await?;
        Ok(Self { kind: layer.kind(), origin: layer.origin(), content })
    }

    /// What was read elsewhere.
    #[must_use]
    pub const fn new(kind: LayerKind, origin: String, content: Content) -> Self {
        Self { kind, origin, content }
    }
}

impl Layer for Held {
    fn kind(&self) -> LayerKind {
        self.kind
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn read(&self) -> ReadLayer<'_> {
        Box::pin(std::future::ready(Ok(self.content.clone())))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn content(pairs: &[(&str, &str)]) -> Content {
        Environment::content_of(pairs.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn a_value_that_is_no_text_is_unreadable_and_not_changed_in_silence() {
        let raw = OsString::from_vec(vec![b'p', 0xff, b'w']);
        let content = Environment::content_of([("REDIS_PASSWORD".into(), raw)]);
        assert!(content.values.is_empty());
        assert_eq!(content.unreadable["REDIS_PASSWORD"], "it is not valid UTF-8");
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b" hunter2 \r\n").unwrap();
        let path = file.path().to_str().unwrap();
        let read = content(&[("REDIS_PASSWORD_FILE", path), ("LOG_LEVEL_FILE", path)]);
        assert_eq!(read.values["REDIS_PASSWORD"].expose(), " hunter2 ");
        assert!(!read.values.contains_key("LOG_LEVEL"), "only secrets have a file form");
        let both = content(&[("REDIS_PASSWORD_FILE", path), ("REDIS_PASSWORD", "x")]);
        assert!(both.unreadable["REDIS_PASSWORD"].contains("both set"));
        let absent = content(&[("REDIS_PASSWORD_FILE", "/nonexistent/secret")]);
        assert!(absent.unreadable["REDIS_PASSWORD"].contains("No such file"));
    }

    #[test]
    fn a_huge_secret_file_is_refused_before_it_fills_the_memory() {
        let absent = content(&[("REDIS_PASSWORD_FILE", "/dev/zero")]);
        assert!(absent.unreadable["REDIS_PASSWORD"].contains("larger than"));
    }
}
