//! Clocks, shutdown, backoff, loop vitals and secrets: what every process needs and no domain owns.
