//! The voiceai-scaler binary.

fn main() {}
