//! What the proxies together say of a server that should carry no call any more.

use super::listing::Target;
use super::rpc::RpcError;

/// A server as proxies know it.
#[derive(Debug, Clone)]
pub struct Callee {
    /// Its name.
    pub name: String,
    /// Its set.
    pub setid: u32,
    /// Its SIP URI.
    pub destination: String,
}

/// What one proxy says of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The state in its list; `None`: it has no such destination.
    pub state: Option<Target>,
    /// Running calls; `None` when it does not count them.
    pub dialogs: Option<u64>,
}

/// What all proxies together say of a server that should carry no call any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No proxy that answers sends it calls or knows of one.
    Clear,
    /// One does, in words.
    Busy(String),
    /// None does, and this one did not answer.
    Silent(String),
}

/// The verdict on a server, from each proxy's address and answer.
#[must_use]
pub fn verdict(answers: &[(String, Result<Carried, RpcError>)]) -> Verdict {
    let mut silent = None;
    for (proxy, answer) in answers {
        match answer {
            Ok(Carried { state: Some(target), .. }) if !target.is_disabled() => {
                return Verdict::Busy(format!("{proxy} still has it in service ({})", target.state));
            }
            Ok(Carried { dialogs: Some(dialogs), .. }) if *dialogs > 0 => {
                return Verdict::Busy(format!("{proxy} still counts calls of it"));
            }
            Ok(_) => {}
            Err(error) => silent = Some(format!("{proxy}: {error}")),
        }
    }
    silent.map_or(Verdict::Clear, Verdict::Silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(state: Option<&str>, dialogs: Option<u64>) -> Result<Carried, RpcError> {
        let target = |state: &str| Target {
            setid: 1,
            destination: "sip:a:5060".to_owned(),
            duid: Some("a".to_owned()),
            state: state.to_owned(),
        };
        Ok(Carried { state: state.map(target), dialogs })
    }

    fn away() -> Result<Carried, RpcError> {
        Err(RpcError::NoAnswer("time is up".to_owned()))
    }

    #[test]
    fn a_server_is_clear_when_no_proxy_that_answers_objects() {
        let judge = |answers: Vec<Result<Carried, RpcError>>| {
            let named: Vec<_> = answers.into_iter().map(|answer| ("p".to_owned(), answer)).collect();
            verdict(&named)
        };
        let busy = |verdict| matches!(verdict, Verdict::Busy(_));
        assert_eq!(judge(vec![]), Verdict::Clear);
        assert_eq!(judge(vec![says(Some("DP"), Some(0)), says(None, Some(0))]), Verdict::Clear);
        assert_eq!(
            judge(vec![says(Some("DX"), None)]),
            Verdict::Clear,
            "it counts no calls: no second source"
        );
        assert!(busy(judge(vec![says(Some("DP"), Some(0)), says(Some("DP"), Some(1))])));
        assert!(busy(judge(vec![says(Some("AP"), Some(0))])), "it would be sent the next call");
        assert!(busy(judge(vec![says(Some("IP"), Some(0))])), "it would be sent calls after the next probe");
        assert!(busy(judge(vec![away(), says(None, Some(2))])));
        assert!(matches!(judge(vec![away(), says(Some("DP"), Some(0))]), Verdict::Silent(_)));
    }
}
