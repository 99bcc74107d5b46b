use std::io::{self, BufRead, IsTerminal, Write};

use crate::args::Mutation;
use crate::failure::Failure;

/// What is about to be done: `Discard 12 dead jobs of queue email-queue?`
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// The verb, capitalised: `Discard`.
    pub verb: &'q str,
    /// What it is done to, by name: `dead jobs of queue email-queue`, `server staging-voice-02`.
    pub object: &'q str,
    /// How many, where it is more than the one that is named.
    pub count: Option<u64>,
}

/// Asks on a terminal; elsewhere only `--yes` lets it go on.
///
/// # Errors
/// Usage (2) without a terminal and without `--yes`; failed (1), code `cancelled`, when the answer is not yes.
pub fn confirm(mutation: &Mutation, question: &Question<'_>) -> Result<(), Failure> {
    if mutation.yes {
        return Ok(());
    }
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    ask(question, terminal, &mut io::stdin().lock(), &mut io::stderr().lock())
}

fn ask(
    Question { verb, object, count }: &Question<'_>,
    terminal: bool,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<(), Failure> {
    let what = count.map_or_else(|| format!("{verb} {object}"), |count| format!("{verb} {count} {object}"));
    if !terminal {
        return Err(Failure::usage(
            "confirmation_needed",
            format!("this would: {what}; there is no terminal to ask on"),
            "Pass --yes to go on, or --dry-run to see what it would do.",
        ));
    }
    let mut answer = String::new();
    let asked = write!(output, "{what}? [y/N] ").and_then(|()| output.flush());
    let read = asked.and_then(|()| input.read_line(&mut answer));
    match read {
        Ok(_) if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) => Ok(()),
        _ => Err(Failure::failed("cancelled", "cancelled; nothing was changed", "Answer y to go on.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: Question<'_> =
        Question { verb: "Discard", object: "dead jobs of queue mail", count: Some(12) };

    fn answered(terminal: bool, answer: &str) -> (Result<(), Failure>, String) {
        let mut asked = Vec::new();
        let result = ask(&QUESTION, terminal, &mut answer.as_bytes(), &mut asked);
        (result, String::from_utf8(asked).unwrap())
    }

    #[test]
    fn a_terminal_is_asked_with_object_and_count() {
        for yes in ["y\n", "YES\n", " yes \n"] {
            let (result, asked) = answered(true, yes);
            assert_eq!(result, Ok(()), "{yes:?}");
            assert_eq!(asked, "Discard 12 dead jobs of queue mail? [y/N] ");
        }
        for no in ["", "\n", "n\n", "yess\n", "yes please\n"] {
            assert_eq!(answered(true, no).0.unwrap_err().code, "cancelled", "{no:?}");
        }
    }

    #[test]
    fn without_a_terminal_nothing_is_asked_and_the_flag_is_named() {
        let (result, asked) = answered(false, "yes\n");
        let failure = result.unwrap_err();
        assert_eq!((failure.exit.code(), asked.as_str()), (2, ""));
        assert!(failure.remedy.contains("--yes"), "{failure}");
    }

    #[test]
    fn yes_is_an_answer_given_before() {
        let mutation = Mutation { yes: true, ..Mutation::default() };
        assert_eq!(confirm(&mutation, &QUESTION), Ok(()));
    }
}
