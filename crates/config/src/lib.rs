//! The one declaration of every setting, and the layers its values come from.
//!
//! A setting is declared once, in [`catalogue`]: name, aliases, type, unit, default, source, whether it is secret, which
//! binary reads it. The typed settings of each crate, `config print`, `config check`, `config manifest` and
//! `docs/configuration.md` all come from that declaration.
//!
//! ```
//! use voiceai_config::{Binary, Resolved, catalogue::leader};
//!
//! let resolved = Resolved::from_pairs(Binary::Scaler, [("LEADER_LOCK_TTL_MS", "12000")]);
//! let loaded = resolved.read(|reader| reader.get(&leader::LEADER_LOCK_TTL_MS))?;
//! assert_eq!(loaded.settings, std::time::Duration::from_secs(12));
//! # Ok::<(), voiceai_config::Report>(())
//! ```
//!
//! Values come from layers, lowest first: a declared default (only when nothing else gives a value), the bootstrap
//! environment, SSM, Secrets Manager, an external secret. What is composed from other values (`DATABASE_URL` from its parts)
//! is built last, and only when no layer gives it. An empty value counts as unset.

pub mod catalogue;
mod compose;
mod document;
mod duration;
mod general;
mod layer;
mod manifest;
mod mask;
mod nearest;
mod print;
mod reader;
mod report;
mod resolve;
mod rotation;
mod rules;
mod setting;
mod value;

pub use document::document;
pub use duration::parse_duration;
pub use general::{General, HostName, Instance, runtime_dir};
pub use layer::{Content, Environment, Fixed, Held, Layer, LayerError, LayerKind, ReadLayer};
pub use manifest::{Manifest, OutsideSecret, SERVICE, Template, Variable, manifest};
pub use mask::{MASK, mask_url};
pub use print::{Overridden, Printed};
pub use reader::{Loaded, Reader};
pub use report::{Report, Violation, Warning};
pub use resolve::{Candidate, Resolution, Resolved};
pub use rotation::{ExternalSecret, Rotating};
pub use setting::{Binaries, Binary, Declaration, External, Required, Scope, Section, Setting, Source};
pub use value::{Address, Choice, Kind, Rate, Value};
