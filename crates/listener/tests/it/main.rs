//! Listeners on real sockets, met by good, slow, rude and many clients.

mod client;
mod drain;
mod limits;
mod requests;
