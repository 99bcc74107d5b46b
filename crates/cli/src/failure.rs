use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::exit::ExitCode;

/// A command that did not end well, as an operator or a script meets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// A stable snake_case word that scripts may compare.
    pub code: &'static str,
    /// What happened, naming the thing and the place.
    pub message: String,
    /// What to do, as an order.
    pub remedy: String,
    /// How the process ends.
    #[serde(skip)]
    pub exit: ExitCode,
}

impl Failure {
    /// A failure that ends the process with `exit`.
    pub fn new(
        exit: ExitCode,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { code, message: message.into(), remedy: remedy.into(), exit }
    }

    /// Exit 1: it was tried and did not work.
    pub fn failed(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ExitCode::Failed, code, message, remedy)
    }

    /// Exit 2: the command line is not right.
    pub fn usage(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, code, message, remedy)
    }

    /// Exit 3: the named thing does not exist.
    pub fn not_found(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ExitCode::NotFound, code, message, remedy)
    }

    /// Exit 4: a precondition is not met, and nothing was done.
    pub fn refused(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ExitCode::Refused, code, message, remedy)
    }

    /// Exit 5: a backend cannot be reached.
    pub fn unreachable(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ExitCode::Unreachable, code, message, remedy)
    }

    /// Exit 6: done for some and not for others.
    pub fn partial(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ExitCode::Partial, code, message, remedy)
    }

    /// Exit 7: a health check found something unhealthy.
    pub fn unhealthy(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(ExitCode::Unhealthy, code, message, remedy)
    }

    /// Writes the failure to stderr, as text or, with `json`, as `{"code","message","remedy"}` on one line, and gives the exit
    /// code to end with. A stderr that is closed changes nothing.
    #[must_use]
    pub fn report(&self, json: bool) -> ExitCode {
        let _ = self.write(&mut io::stderr().lock(), json);
        self.exit
    }

    pub(crate) fn write(&self, to: &mut impl Write, json: bool) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *to, self)?;
            writeln!(to)
        } else {
            writeln!(to, "error: {self}")
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n  {}", self.remedy) }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(failure: &Failure, json: bool) -> String {
        let mut bytes = Vec::new();
        failure.write(&mut bytes, json).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_kind_has_its_exit_code() {
        type Make = fn(&'static str, &'static str, &'static str) -> Failure;
        let kinds: [(Make, u8); 7] = [
            (Failure::failed, 1),
            (Failure::usage, 2),
            (Failure::not_found, 3),
            (Failure::refused, 4),
            (Failure::unreachable, 5),
            (Failure::partial, 6),
            (Failure::unhealthy, 7),
        ];
        for (make, code) in kinds {
            assert_eq!(make("a", "b", "c").exit.code(), code);
        }
        assert_eq!(ExitCode::Done.code(), 0);
    }

    #[test]
    fn a_failure_is_text_for_people_and_one_line_of_json_for_scripts() {
        let failure = Failure::not_found("job_not_found", "no job has the id \"a\"", "Run `jobs list`.");
        assert_eq!(written(&failure, false), "error: no job has the id \"a\"\n  Run `jobs list`.\n");
        let json = written(&failure, true);
        assert_eq!(json.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!(
            {"code": "job_not_found", "message": "no job has the id \"a\"", "remedy": "Run `jobs list`."}
        );
        assert_eq!(json, expected);
    }
}
