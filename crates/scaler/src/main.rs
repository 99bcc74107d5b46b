//! The voiceai-scaler binary.

use tikv_jemallocator::Jemalloc;

/// A process that lives for months keeps its size: glibc's allocator hands little back of what many threads freed.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> std::process::ExitCode {
    voiceai_scaler::main()
}
