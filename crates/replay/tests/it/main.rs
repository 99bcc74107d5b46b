//! Replays on a real PostgreSQL, with a domain made of memory.

mod carry_out;
mod proof;
mod source;
