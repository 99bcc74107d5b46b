use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

use crate::exit::ExitCode;
use crate::failure::Failure;

/// Reads the command line of this process. Help and version are printed to stdout; a mistake goes to stderr, with `--json`
/// somewhere on the line as JSON.
///
/// # Errors
/// The exit code to end with: 0 after help or version, 2 after a mistake.
pub fn parse<C: Parser>() -> Result<C, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    C::try_parse_from(arguments).map_err(|error| match mistake(&error) {
        Some(failure) if json => failure.report(true),
        Some(failure) => {
            // In clap's own words, which point at the argument.
            let _ = error.print();
            failure.exit
        }
        None => {
            let _ = error.print();
            ExitCode::Done
        }
    })
}

fn mistake(error: &clap::Error) -> Option<Failure> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return None;
    }
    let text = error.render().to_string();
    // What is wrong, and the lines below it that name arguments or values; then come tips and the usage.
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    let message = lines.map(str::trim).collect::<Vec<_>>().join(" ");
    let message = message.trim_start_matches("error: ");
    Some(Failure::usage("usage", message, "Run the command with --help."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "tool", version = "1")]
    struct Tool {
        #[arg(long)]
        limit: u32,
    }

    #[test]
    fn a_mistake_is_a_usage_failure_and_help_is_none() {
        let error = Tool::try_parse_from(["tool", "--limit", "many"]).unwrap_err();
        let failure = mistake(&error).unwrap();
        assert_eq!(failure.exit.code(), 2);
        assert!(failure.message.contains("'many'") && failure.message.contains("--limit"), "{failure}");
        assert!(mistake(&Tool::try_parse_from(["tool", "--help"]).unwrap_err()).is_none());
        assert!(mistake(&Tool::try_parse_from(["tool", "--version"]).unwrap_err()).is_none());
        let missing = mistake(&Tool::try_parse_from(["tool"]).unwrap_err()).unwrap();
        assert!(
            missing.message.contains("required") && missing.message.contains("--limit <LIMIT>"),
            "{missing}"
        );
    }
}
