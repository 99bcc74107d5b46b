//! The queue's bench: our side of each measurement, and the director that sets it against its peers.
//!
//! `bench-queue direct` runs everything; `bench-queue ours <work> …` is one measurement, printed as a line of JSON.

mod direct;
mod ours;

/// As in voiceai-tasker.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    // The process default, as a binary of ours sets it: fred's TLS would ask for it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let url = std::env::var("REDIS_URL").context("REDIS_URL names the private Redis to measure on")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match args.first().map(String::as_str) {
        Some("ours") => runtime.block_on(ours::run(&url, &args[1..])),
        Some("direct") => runtime.block_on(direct::run(&url)),
        _ => bail!("usage: bench-queue direct | bench-queue ours WORK [ARGS]"),
    }
}
