//! Transports against real and scripted servers.

mod contract;
mod faults;
mod real;
mod support;
