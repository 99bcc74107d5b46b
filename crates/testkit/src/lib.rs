//! Throwaway servers, databases and faults for tests.
//!
//! # Shared servers: a database of one's own
//!
//! [`redis()`], [`database()`] (also [`postgres()`], [`empty_database`] and [`database_from`]) and [`s3()`] hand out a database
//! number, a database and a bucket that no other test uses, on servers that all tests share. `make test` starts those servers
//! and stops them at its end (`scripts/stack/test-servers.sh run`); their addresses come by `VOICEAI_TEST_REDIS_URL`,
//! `VOICEAI_TEST_DATABASE_URL` and `VOICEAI_TEST_S3_*`. Without them (a plain `cargo test` or `cargo nextest run`) the first
//! test that asks starts the server under a file lock, and a supervisor ends it when no test process has lived for a minute.
//! A test must not stop, pause or reconfigure a shared server, and must remember that Redis pub/sub and functions know no
//! database numbers.
//!
//! # Servers of one's own: to be killed
//!
//! [`RedisServer`], [`PostgresServer`], [`Sentinel`], [`Cluster`], [`Kamailio`] and [`TcpProxy`] belong to the test that starts
//! them. [`Sipp`] places real calls. [`Process`] runs our own binaries. All of them are ended on drop, and by the kernel if the
//! test itself is killed.
//!
//! # Failure
//!
//! This crate is for tests only: what cannot be done panics, with the thing, the place and the log.
#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test helper fails the test by panicking; it is never part of a binary"
)]

mod aws;
mod certificate;
mod cluster;
mod database;
mod exim;
mod http;
mod imds;
mod kamailio;
mod ports;
mod postgres_server;
mod process;
mod proxy;
mod redis_server;
mod s3;
mod sentinel;
mod shared;
mod sipp;
mod smtp;
mod squid;
mod wait;

pub use aws::{AwsFault, AwsFaults, Moto};
pub use certificate::Certificate;
pub use cluster::Cluster;
pub use database::{Database, database, database_from, empty_database, postgres};
pub use exim::Exim;
pub use imds::{Imds, ImdsOptions};
pub use kamailio::{Kamailio, KamailioOptions};
pub use ports::Port;
pub use postgres_server::PostgresServer;
pub use process::{Exit, Process, Program, binary};
pub use proxy::TcpProxy;
pub use redis_server::{RedisOptions, RedisServer};
pub use s3::{S3, s3};
pub use sentinel::{Sentinel, SentinelOptions};
pub use shared::{RedisDb, redis};
pub use sipp::{Sipp, SippCounts, SippOptions};
pub use smtp::{Act, Received, SinkOptions, SinkTls, SmtpSink, Step};
pub use squid::{Squid, SquidOptions};
pub use wait::{wait_for, wait_until};
