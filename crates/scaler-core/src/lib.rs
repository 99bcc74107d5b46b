//! The scaler's decisions and state machines: pure, no clock, no I/O, no randomness.
