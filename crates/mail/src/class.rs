use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a mail is for. It decides which suppressions bind it, whether it carries `List-Unsubscribe`, and what is done when
/// nobody can tell whether it arrived.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Login codes, password set-up: worthless when late, never a list.
    Auth,
    /// The outcome of something that its reader did: receipts, exports.
    Transactional,
    /// Money: receipts, subscriptions, failed payments. A second copy alarms its reader.
    Billing,
    /// What the platform reports about its readers' things.
    Notification,
    /// What the platform reports about itself, to those who run it.
    System,
    /// What its reader may end by one click.
    Marketing,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 6] =
        [Self::Auth, Self::Transactional, Self::Billing, Self::Notification, Self::System, Self::Marketing];

    /// The name in manifests, settings and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Transactional => "transactional",
            Self::Billing => "billing",
            Self::Notification => "notification",
            Self::System => "system",
            Self::Marketing => "marketing",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownClass(pub String);

impl fmt::Display for UnknownClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Class::ALL.map(Class::as_str).join(", ");
        write!(f, "`{}` is no class of mail; use one of {names}", self.0.escape_default())
    }
}

impl std::error::Error for UnknownClass {}

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| UnknownClass(text.to_owned()))
    }
}
