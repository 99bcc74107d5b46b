//! The voiceai-tasker binary.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match voiceai_cli::parse() {
        Ok(cli) => Box::pin(voiceai_tasker::commands::dispatch(cli)).await.into(),
        Err(exit) => exit.into(),
    }
}
