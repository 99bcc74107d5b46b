//! Rules that hold for every command of either binary, whatever settings it reads.

use crate::catalogue::{general, platform};
use crate::reader::wrong;
use crate::report::Violation;
use crate::resolve::{Candidate, Resolved};
use crate::setting::Declaration;

/// Every broken rule.
pub(crate) fn broken(resolved: &Resolved) -> Vec<Violation> {
    let mut found: Vec<_> = failpoint_refused(resolved, cfg!(debug_assertions)).into_iter().collect();
    found.extend(static_keys_refused(resolved));
    found
}

fn given<'r>(resolved: &'r Resolved, declaration: &Declaration) -> Option<&'r Candidate> {
    resolved.resolution(declaration)?.winner.as_ref()
}

/// A build for production has no failpoints: one that was asked for and does nothing would make a test pass that tested
/// nothing, or hide a leftover of a game day.
fn failpoint_refused(resolved: &Resolved, has_failpoints: bool) -> Option<Violation> {
    let declaration = &general::VOICEAI_FAILPOINT.declaration;
    let winner = given(resolved, declaration).filter(|_| !has_failpoints)?;
    Some(Violation {
        remedy: "Unset it, or run a development build.".to_owned(),
        ..wrong(declaration, winner, "no failpoint: this build has none".to_owned())
    })
}

/// In the credential chain static keys come before the instance's role, so the role would never be used.
fn static_keys_refused(resolved: &Resolved) -> Vec<Violation> {
    let wanted = resolved.effective(platform::AWS_USE_INSTANCE_PROFILE.declaration.name).unwrap_or_default();
    if !["1", "true", "yes", "on"].contains(&wanted.to_ascii_lowercase().as_str()) {
        return Vec::new();
    }
    let keys = [&platform::AWS_ACCESS_KEY_ID.declaration, &platform::AWS_SECRET_ACCESS_KEY.declaration];
    let given = keys.into_iter().filter_map(|declaration| Some((declaration, given(resolved, declaration)?)));
    given
        .map(|(declaration, winner)| Violation {
            remedy: format!("Unset {}, or set AWS_USE_INSTANCE_PROFILE=false.", winner.variable),
            ..wrong(
                declaration,
                winner,
                "no static key, because AWS_USE_INSTANCE_PROFILE is true and a key would be used in the role's place".to_owned(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Binary;

    #[test]
    fn a_release_build_refuses_a_failpoint_and_a_development_build_takes_it() {
        let resolved =
            Resolved::from_pairs(Binary::Scaler, [("VOICEAI_FAILPOINT", "op.requested.before=abort")]);
        let violation = failpoint_refused(&resolved, false).expect("a violation");
        assert_eq!(violation.name, "VOICEAI_FAILPOINT");
        assert!(failpoint_refused(&resolved, true).is_none());
        let unset = Resolved::from_pairs(Binary::Scaler, [("VOICEAI_FAILPOINT", "")]);
        assert!(failpoint_refused(&unset, false).is_none());
    }

    #[test]
    fn static_keys_beside_the_instance_profile_are_refused_by_any_command() {
        let keys = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "canary")];
        assert!(Resolved::from_pairs(Binary::Tasker, keys).read(|_| ()).is_ok());
        let with_profile = keys.into_iter().chain([("AWS_USE_INSTANCE_PROFILE", "Yes")]);
        let report = Resolved::from_pairs(Binary::Tasker, with_profile).read(|_| ()).expect_err("refused");
        let names: Vec<_> = report.violations.iter().map(|violation| violation.name.as_str()).collect();
        assert_eq!(names, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
        assert!(!report.to_string().contains("canary") && report.to_string().contains("in the role's place"));
    }
}
