//! Answers in the shape that the platform's admin screens read, and failures as problems.

use serde::Serialize;
use serde_json::Value;
use voiceai_cli::{ExitCode, Failure};
use voiceai_listener::Problem;
use voiceai_listener::axum::Json;
use voiceai_listener::axum::http::StatusCode;

/// `{"success":true,"data":…}`.
#[derive(Debug, Serialize)]
pub(super) struct Reply<T> {
    success: bool,
    data: T,
}

impl<T> Reply<T> {
    pub(super) const fn of(data: T) -> Json<Self> {
        Json(Self { success: true, data })
    }
}

/// A failure as an answer of those routes.
pub(super) fn problem(failure: Failure) -> Problem {
    unsuccessful(of_failure(failure))
}

/// A failure as a problem: what ends a command with an exit code ends a request with a status.
pub(super) fn of_failure(failure: Failure) -> Problem {
    let Failure { code, message, remedy, exit } = failure;
    let problem = match exit {
        ExitCode::NotFound => Problem::not_found(code, message),
        ExitCode::Usage => Problem::bad_request(code, message),
        ExitCode::Refused => Problem::conflict(code, message),
        ExitCode::Unreachable => Problem::unavailable(code, message),
        _ => Problem::internal(code, message),
    };
    problem.remedy(remedy)
}

/// The platform's screens look at this member first.
pub(super) fn unsuccessful(problem: Problem) -> Problem {
    problem.with("success", Value::Bool(false))
}

/// A problem of what was asked, 409: the thing is there and cannot be done.
pub(super) fn refused(code: &'static str, message: String, remedy: &str) -> Problem {
    unsuccessful(Problem::new(StatusCode::CONFLICT, code, message).remedy(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_has_its_status() {
        type Make = fn(&'static str, &'static str, &'static str) -> Failure;
        let kinds: [(Make, u16); 6] = [
            (Failure::not_found, 404),
            (Failure::usage, 400),
            (Failure::refused, 409),
            (Failure::unreachable, 503),
            (Failure::failed, 500),
            (Failure::partial, 500),
        ];
        for (make, status) in kinds {
            assert_eq!(problem(make("a", "b", "c")).status().as_u16(), status);
        }
    }
}
