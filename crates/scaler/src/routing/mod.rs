//! Calls to voice servers: what Kamailio is told of them, and what it says.
//!
//! [`records`] follow from the rows; [`dispatcher`] keeps them in the Redis that Kamailio reads; where proxies have an address,
//! [`proxies`] has them load the records, looks at what they made of them ([`listing`]), and asks for the calls of a server
//! that is being drained.

pub mod dispatcher;
pub mod listing;
pub mod proxies;
pub mod records;
pub mod rpc;
pub mod verdict;
