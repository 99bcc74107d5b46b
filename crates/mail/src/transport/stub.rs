use futures_util::future::BoxFuture;

use super::{Outcome, Outgoing, Phase, Reason, Stage, Summary, Transport};

/// Sends nothing: every mail is recorded as suppressed. What could not be sent by the others is refused here too, so that a
/// test environment shows the same errors.
#[derive(Debug, Clone, Copy, Default)]
pub struct StubTransport;

impl Transport for StubTransport {
    fn name(&self) -> &'static str {
        "stub"
    }

    fn send<'a>(&'a self, mail: &'a Outgoing, _stage: &'a dyn Stage) -> BoxFuture<'a, Outcome> {
        let summary = |phase, reason, text: &str| Summary {
            phase,
            reason,
            code: None,
            enhanced: None,
            text: text.to_owned(),
            host: String::new(),
            tls: None,
            duration_ms: 0,
        };
        let outcome = match super::fit(mail) {
            Ok(_) => Outcome::Suppressed {
                summary: summary(Phase::Final, Reason::Stub, "EMAIL_TRANSPORT is stub: nothing was sent"),
            },
            Err((axis, phase, text)) => {
                Outcome::Refused { axis, summary: summary(phase, Reason::Malformed, &text) }
            }
        };
        Box::pin(std::future::ready(outcome))
    }
}
