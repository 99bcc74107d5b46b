use std::marker::PhantomData;

use crate::compose::Compose;
use crate::value::{Kind, Value};

/// One of the two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `voiceai-scaler`.
    Scaler,
    /// `voiceai-tasker`.
    Tasker,
}

impl Binary {
    /// The name of the executable and of its container.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scaler => "voiceai-scaler",
            Self::Tasker => "voiceai-tasker",
        }
    }
}

/// Which of the two services read a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binaries {
    /// Both services.
    Both,
    /// Only `voiceai-scaler`.
    Scaler,
    /// Only `voiceai-tasker`.
    Tasker,
}

impl Binaries {
    /// True when `binary` reads the setting.
    #[must_use]
    pub const fn include(self, binary: Binary) -> bool {
        matches!(
            (self, binary),
            (Self::Both, _) | (Self::Scaler, Binary::Scaler) | (Self::Tasker, Binary::Tasker)
        )
    }

    /// The names of the services, in a fixed order.
    #[must_use]
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Both => &["voiceai-scaler", "voiceai-tasker"],
            Self::Scaler => &["voiceai-scaler"],
            Self::Tasker => &["voiceai-tasker"],
        }
    }
}

/// Where the platform keeps a setting. Any layer may give any setting; this is its documented home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The environment of the process (the host's bootstrap file).
    Bootstrap,
    /// SSM parameters under `/<NAMESPACE>/<service>/`.
    Ssm,
    /// Secrets Manager under `<NAMESPACE>/<service>/`.
    SecretsManager,
}

impl Source {
    /// The word used in documents and in the manifest.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Ssm => "ssm",
            Self::SecretsManager => "secrets_manager",
        }
    }
}

/// When a setting must have a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Required {
    /// A default stands in, or nothing is needed.
    No,
    /// The service does not start without it.
    Always,
    /// Needed when the other setting has this value.
    When(&'static str, &'static str),
    /// Needed when the other setting is given at all.
    With(&'static str),
}

/// Who uses a value on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The running service.
    Service,
    /// The host's own set-up; never handed to a container.
    Init,
}

/// Everything known about a setting except its Rust type.
#[derive(Debug, Clone, Copy)]
pub struct Declaration {
    /// Name of the variable. A part `<NAME>` makes it a pattern: `QUEUE_<NAME>_RATE`.
    pub name: &'static str,
    /// Other names of the same setting. Name and alias set differently is a violation.
    pub aliases: &'static [&'static str],
    /// One or two sentences for the person who sets it.
    pub doc: &'static str,
    /// Type and unit.
    pub kind: Kind,
    /// The value used when no layer gives one, as it would be written in a variable.
    pub default: Option<&'static str>,
    /// A default that is computed, in words.
    pub computed_default: Option<&'static str>,
    /// Smallest and largest value, both allowed; milliseconds for durations.
    pub bounds: Option<(i64, i64)>,
    /// Where the platform keeps it.
    pub source: Source,
    /// When it must be set.
    pub required: Required,
    /// Who uses it.
    pub scope: Scope,
    /// Which services read it.
    pub binaries: Binaries,
    /// True when a running service picks up a new value by itself; any other change needs a start.
    pub rotates: bool,
    /// The secret outside the service's own prefix that may hold it.
    pub external: Option<External>,
    pub(crate) check: Option<Check>,
    pub(crate) compose: Option<Compose>,
    pub(crate) splits_into: Option<(&'static str, &'static str)>,
    pub(crate) verify: fn(&str, &Self) -> Result<(), String>,
}

/// One key of a secret that stands outside the service's own prefix, such as the one that a managed database keeps for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct External {
    /// The setting that holds the secret's name or ARN.
    pub arn_from: &'static str,
    /// The key of the JSON object in it.
    pub key: &'static str,
}

/// A rule of one setting beyond its type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    pub(crate) expected: &'static str,
    pub(crate) holds: fn(&str) -> bool,
}

impl Declaration {
    /// True when the value must never be shown.
    #[must_use]
    pub const fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret | Kind::SecretUrl)
    }

    /// True when the name holds `<NAME>` and stands for many variables.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        self.name.contains(PLACE)
    }

    /// The part that stands for `<NAME>` in `variable`, when `variable` is one of this pattern's.
    #[must_use]
    pub fn matched<'v>(&self, variable: &'v str) -> Option<&'v str> {
        let (before, after) = self.name.split_once(PLACE)?;
        let part = variable.strip_prefix(before)?.strip_suffix(after)?;
        (!part.is_empty()).then_some(part)
    }

    /// What a value must look like, in words: for violations and documents.
    #[must_use]
    pub fn expected(&self) -> String {
        self.check.map_or_else(|| self.kind.expected(self.bounds), |check| check.expected.to_owned())
    }

    /// The setting's template when it is composed from others.
    #[must_use]
    pub fn template(&self) -> Option<&'static str> {
        self.compose.map(|compose| compose.template)
    }
}

pub(crate) const PLACE: &str = "<NAME>";

/// A typed setting. Made by the `settings!` blocks of the catalogue.
#[derive(Debug)]
pub struct Setting<T> {
    /// What is known without the type.
    pub declaration: Declaration,
    of: PhantomData<fn() -> T>,
}

fn verify<T: Value>(raw: &str, declaration: &Declaration) -> Result<(), String> {
    T::parse(raw, declaration).map(drop)
}

impl<T: Value> Setting<T> {
    pub(crate) const fn of(kind: Kind) -> Self {
        let declaration = Declaration {
            name: "",
            aliases: &[],
            doc: "",
            kind,
            default: None,
            computed_default: None,
            bounds: None,
            source: Source::Ssm,
            required: Required::No,
            scope: Scope::Service,
            binaries: Binaries::Both,
            rotates: false,
            external: None,
            check: None,
            compose: None,
            splits_into: None,
            verify: verify::<T>,
        };
        Self { declaration, of: PhantomData }
    }
}

/// The steps of a declaration. Each is `const`, so a catalogue is data and costs nothing at start.
impl<T> Setting<T> {
    pub(crate) const fn named(mut self, name: &'static str, doc: &'static str) -> Self {
        self.declaration.name = name;
        self.declaration.doc = doc;
        self
    }

    pub(crate) const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.declaration.aliases = aliases;
        self
    }

    pub(crate) const fn default(mut self, default: &'static str) -> Self {
        self.declaration.default = Some(default);
        self
    }

    pub(crate) const fn computed_default(mut self, words: &'static str) -> Self {
        self.declaration.computed_default = Some(words);
        self
    }

    /// Both ends allowed; milliseconds for durations, else the number itself.
    pub(crate) const fn between(mut self, least: i64, most: i64) -> Self {
        self.declaration.bounds = Some((least, most));
        self
    }

    pub(crate) const fn source(mut self, source: Source) -> Self {
        self.declaration.source = source;
        self
    }

    pub(crate) const fn bootstrap(self) -> Self {
        self.source(Source::Bootstrap)
    }

    pub(crate) const fn required(mut self) -> Self {
        self.declaration.required = Required::Always;
        self
    }

    pub(crate) const fn required_when(mut self, other: &'static str, value: &'static str) -> Self {
        self.declaration.required = Required::When(other, value);
        self
    }

    pub(crate) const fn required_with(mut self, other: &'static str) -> Self {
        self.declaration.required = Required::With(other);
        self
    }

    pub(crate) const fn only(mut self, binaries: Binaries) -> Self {
        self.declaration.binaries = binaries;
        self
    }

    /// A running service reads it again: see `SECRETS_REFRESH_INTERVAL`.
    pub(crate) const fn rotates(mut self) -> Self {
        self.declaration.rotates = true;
        self
    }

    /// It may also stand under `key` in the secret that the setting `arn_from` names.
    pub(crate) const fn external(mut self, arn_from: &'static str, key: &'static str) -> Self {
        self.declaration.external = Some(External { arn_from, key });
        self
    }

    /// A rule beyond the type; `expected` completes the sentence "expected …".
    pub(crate) const fn check(mut self, expected: &'static str, holds: fn(&str) -> bool) -> Self {
        self.declaration.check = Some(Check { expected, holds });
        self
    }

    pub(crate) const fn composed(mut self, compose: Compose) -> Self {
        self.declaration.compose = Some(compose);
        self
    }

    /// `host:port` in one variable stands for two settings.
    pub(crate) const fn splits_into(mut self, host: &'static str, port: &'static str) -> Self {
        self.declaration.splits_into = Some((host, port));
        self
    }
}

/// The settings of one topic, in the order in which documents show them.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// A sentence under the heading.
    pub intro: &'static str,
    /// The declarations.
    pub declarations: &'static [&'static Declaration],
}

/// Declares the settings of one catalogue file:
///
/// ```text
/// settings! {
///     "Heading", "A sentence.";
///     /// What the operator must know.
///     SOME_LIMIT: u32 = integer().default("5").between(1, 100);
///     /// A pattern.
///     QUEUE_RATE as "QUEUE_<NAME>_RATE": Rate = rate();
/// }
/// ```
macro_rules! settings {
    ($title:literal, $intro:literal; $($(#[doc = $doc:literal])+ $name:ident $(as $text:literal)? : $type:ty = $make:expr;)+) => {
        $(
            $(#[doc = $doc])+
            pub static $name: $crate::Setting<$type> =
                $make.named($crate::setting::settings!(@name $name $($text)?), concat!($($doc),+));
        )+

        pub(crate) static SECTION: $crate::Section =
            $crate::Section { title: $title, intro: $intro, declarations: &[$(&$name.declaration),+] };
    };
    (@name $name:ident) => { stringify!($name) };
    (@name $name:ident $text:literal) => { $text };
}
pub(crate) use settings;
