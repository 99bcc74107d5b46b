//! Command-line conventions shared by both binaries: exit codes, output, confirmation, actor.
