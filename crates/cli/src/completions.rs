use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output::Output;

/// Print a completion script for a shell
#[derive(Debug, Clone, Copy, Args)]
pub struct Completions {
    /// The shell to complete for
    pub shell: Shell,
}

/// Prints the completion script of the command line `C`.
///
/// # Errors
/// When stdout cannot be written.
pub fn completions<C: CommandFactory>(Completions { shell }: Completions) -> Result<(), Failure> {
    let mut command = C::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    Output::new(false).text(&String::from_utf8_lossy(&script))
}
