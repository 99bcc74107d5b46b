//! The voiceai-tasker binary.

fn main() {}
