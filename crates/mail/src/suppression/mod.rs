//! Who must not be written to: by his own click, by what became of earlier mail, by an operator.
//!
//! The list itself is read where attempts are claimed; operators see to it through [`crate::operate`].

mod links;
mod page;
mod store;

pub use links::{LinkError, Links, Unsubscribe};
pub use page::routes;
pub use store::{Entry, Reason, record};
