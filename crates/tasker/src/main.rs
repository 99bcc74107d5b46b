//! The voiceai-tasker binary.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// What is allocated on one thread is often freed on another here, which glibc's allocator pays dearly.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match voiceai_cli::parse() {
        Ok(cli) => Box::pin(voiceai_tasker::commands::dispatch(cli)).await.into(),
        Err(exit) => exit.into(),
    }
}
