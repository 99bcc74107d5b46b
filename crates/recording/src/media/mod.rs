//! What is known of sound: pure, beside the runs of ffmpeg in [`studio`].

pub(crate) mod container;
pub(crate) mod loudness;
pub(crate) mod probe;
pub(crate) mod studio;
