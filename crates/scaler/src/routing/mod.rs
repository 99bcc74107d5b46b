//! Calls to voice servers: what Kamailio is told of them, and what it says.
//!
//! [`records`] follow from the rows; [`dispatcher`] keeps them in the Redis that Kamailio reads; where proxies have an address,
//! [`proxies`] has them load the records and asks for what they made of them.

pub mod dispatcher;
pub mod records;
