//! The voiceai-scaler binary.

fn main() -> std::process::ExitCode {
    voiceai_scaler::main()
}
