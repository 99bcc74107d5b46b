//! Who must not be written to: by his own click, by what became of earlier mail, by an operator.
//!
//! Everybody writes the list by one rule (`heavier`); it is read where attempts are claimed.

mod links;
mod list;
mod page;
mod store;

pub use links::{LinkError, Links, Unsubscribe};
pub use list::{Suppression, suppressions};
pub use page::routes;
pub(crate) use store::heavier;
pub use store::{Entry, Reason, record, unsuppress};
