//! The S3 object store, the workspace's one door to the AWS SDK.
//!
//! [`ObjectStore`] is one bucket. Objects of unknown length are streamed up in parts without touching the disk, with bounded
//! memory ([`ObjectStore::put_stream`]); an upload that does not end well leaves nothing behind, and what a killed process
//! left is found and removed ([`ObjectStore::abort_uploads`]). Every error says what was tried, on which key, and by its
//! [`S3ErrorKind`] what the operator has to look at.

mod access;
mod download;
mod error;
mod failure;
mod identity;
mod keys;
mod platform;
mod secret_value;
mod ses;
mod ses_account;
mod settings;
mod store;
mod upload;
mod way;

pub use access::AwsAccess;
pub use download::Download;
pub use error::{S3Error, S3ErrorKind};
pub use failure::CallError;
pub use identity::caller_identity;
pub use keys::{KeyPair, KeySource, ReadKeys};
pub use platform::{
    ParameterLayer, PlatformSettings, ResolveError, SecretLayer, platform_layers, resolve, resolve_from,
};
pub use secret_value::{SecretValueError, secret_value};
pub use ses::{SesClient, SesError, SesErrorKind, SesMail};
pub use ses_account::{SesAccount, SesIdentity, ses_account, ses_identity};
pub use settings::S3Settings;
pub use store::{Object, ObjectStore, OpenUpload};
pub use upload::{PartSizes, Uploaded};
