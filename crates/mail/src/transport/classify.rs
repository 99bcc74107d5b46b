//! What a mail server's reply means: whose fault it is, and whether another attempt may help.

use serde::Deserialize;

use super::outcome::{Phase, Reason};
use super::reply::Reply;

/// Whose fault it is, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The address is refused for good.
    RecipientPermanent,
    /// The address cannot be served now.
    RecipientTemporary,
    /// This mail is refused for good; says nothing about the address.
    MessagePermanent,
    /// This mail is refused for now.
    MessageTemporary,
    /// The provider, or our account with it: no other mail would fare better.
    Provider,
}

/// One line of the table. The first that matches decides; a part that is empty matches all.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Phases it holds for.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Codes, such as `550`; `5` stands for all of that first digit, `45` for all that begin so.
    #[serde(default)]
    pub codes: Vec<String>,
    /// Enhanced codes: `5.1.1`, `5.7.` for all of a subject, `x.7.1` whatever the class. A reply without one matches only
    /// where this is empty.
    #[serde(default)]
    pub enhanced: Vec<String>,
    /// Texts, one of which stands in the reply, without regard to case.
    #[serde(default)]
    pub texts: Vec<String>,
    /// Whose fault it is.
    pub verdict: Verdict,
    /// What it is.
    pub reason: Reason,
}

impl Rule {
    fn matches(&self, phase: Phase, reply: &Reply, lower: &str) -> bool {
        let code = reply.code.to_string();
        (self.phases.is_empty() || self.phases.contains(&phase))
            && (self.codes.is_empty() || self.codes.iter().any(|prefix| code.starts_with(prefix.as_str())))
            && (self.enhanced.is_empty() || self.enhanced.iter().any(|enhanced| reply.is(enhanced)))
            && (self.texts.is_empty()
                || self.texts.iter().any(|text| lower.contains(&text.to_ascii_lowercase())))
    }
}

/// The operator's rules, before the built-in ones.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    own: Vec<Rule>,
}

/// A file of rules that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The text is not JSON of this form.
    #[error("line {line}: {message}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A rule would match everything.
    #[error("rule {0} names no code, no enhanced code and no text: it would decide every reply")]
    MatchesAll(usize),
    /// A rule's code is none.
    #[error("rule {rule}: `{code}` is no code; write 550, 55 or 5")]
    Code {
        /// Which, counted from 1.
        rule: usize,
        /// What stands there.
        code: String,
    },
}

impl Rules {
    /// Reads a JSON array of [`Rule`]s.
    ///
    /// # Errors
    /// [`RulesError`], naming the line or the rule.
    pub fn parse(json: &str) -> Result<Self, RulesError> {
        let own: Vec<Rule> = serde_json::from_str(json)
            .map_err(|error| RulesError::Malformed { line: error.line(), message: error.to_string() })?;
        for (rule, found) in own.iter().enumerate().map(|(at, found)| (at + 1, found)) {
            if found.codes.is_empty() && found.enhanced.is_empty() && found.texts.is_empty() {
                return Err(RulesError::MatchesAll(rule));
            }
            let is_code = |code: &str| {
                (1..=3).contains(&code.len())
                    && code.starts_with(['4', '5'])
                    && code.bytes().all(|byte| byte.is_ascii_digit())
            };
            if let Some(code) = found.codes.iter().find(|code| !is_code(code)) {
                return Err(RulesError::Code { rule, code: code.clone() });
            }
        }
        Ok(Self { own })
    }

    /// Decides what a refusal means.
    #[must_use]
    pub fn classify(&self, phase: Phase, reply: &Reply) -> (Verdict, Reason) {
        let lower = reply.text.to_ascii_lowercase();
        let own = self.own.iter().find(|rule| rule.matches(phase, reply, &lower));
        own.map_or_else(|| built_in(phase, reply, &lower), |rule| (rule.verdict, rule.reason))
    }
}

/// The table that comes with the service: RFC 5321 and RFC 3463, and what large providers say instead.
fn built_in(phase: Phase, reply: &Reply, lower: &str) -> (Verdict, Reason) {
    use Verdict as V;
    let permanent = reply.code >= 500;
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if let Some(reason) = throttled(phase, reply, lower) {
        return (V::Provider, reason);
    }
    if is_authentication(phase, reply) {
        return (V::Provider, Reason::Authentication);
    }
    if reply.code == 421 {
        return (V::Provider, Reason::Unavailable);
    }
    match phase {
        Phase::Connect => {
            let refused = permanent || reply.is("x.7.");
            (V::Provider, if refused { Reason::Policy } else { Reason::Unavailable })
        }
        Phase::Starttls => (V::Provider, Reason::Tls),
        Phase::Auth => (V::Provider, Reason::Authentication),
        Phase::Mail => at_mail(reply, permanent),
        Phase::Rcpt => at_rcpt(reply, permanent, says(&["mailbox", "user", "recipient", "quota", "full"])),
        Phase::Data | Phase::Final => at_content(reply, permanent),
    }
}

/// Limits of our account, which hold for every mail. A mailbox's own quota is something else.
fn throttled(phase: Phase, reply: &Reply, lower: &str) -> Option<Reason> {
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let of_a_mailbox = reply.is("x.2.2") || says(&["mailbox", "over quota", "user is over", "recipient's"]);
    let allowance = says(&["quota", "limit"])
        && says(&[
            "daily",
            "per day",
            "hourly",
            "per hour",
            "monthly",
            "sending",
            "message quota",
            "messages per",
            "account",
        ]);
    if reply.is("5.4.5") || (allowance && !of_a_mailbox && !says(&["size limit"])) {
        return Some(if says(&["rate", "per second"]) { Reason::RateLimited } else { Reason::Quota });
    }
    let rate = says(&[
        "throttl",
        "rate limit",
        "ratelimit",
        "sending rate",
        "too many messages",
        "too many connections",
        "too fast",
    ]);
    if rate {
        return Some(Reason::RateLimited);
    }
    // 452 is `insufficient system storage`, which is the server's; some say by it that an allowance is used up.
    let storage = reply.code == 452 && (phase != Phase::Rcpt || reply.is("4.3.")) && !of_a_mailbox;
    let told = reply.enhanced.is_none() || reply.is("4.3.1") || reply.is("4.3.2") || reply.is("4.3.0");
    (storage && told).then(|| if says(&["quota"]) { Reason::Quota } else { Reason::Unavailable })
}

fn is_authentication(phase: Phase, reply: &Reply) -> bool {
    let by_code = matches!(reply.code, 530 | 534 | 535 | 538) || (reply.code == 454 && phase == Phase::Auth);
    by_code || reply.is("5.7.8") || reply.is("5.7.9") || reply.is("5.7.11") || reply.is("5.7.14")
}

/// Who is refused here is our sender, who is the same for all: a person has to see to it, and no mail is lost meanwhile.
fn at_mail(reply: &Reply, permanent: bool) -> (Verdict, Reason) {
    use Verdict as V;
    match reply.code {
        552 | 523 => (V::MessagePermanent, Reason::TooLarge),
        _ if reply.is("5.3.4") || reply.is("5.2.3") => (V::MessagePermanent, Reason::TooLarge),
        501 | 553 | 555 if !reply.is("5.7.") && !reply.is("5.1.") => (V::MessagePermanent, Reason::Malformed),
        _ if reply.is("x.6.") => (V::MessagePermanent, Reason::Content),
        500 | 502 | 503 | 504 => (V::Provider, Reason::Protocol),
        _ if permanent || reply.is("4.1.") || reply.is("4.7.") => (V::Provider, Reason::Sender),
        _ => (V::Provider, Reason::Unavailable),
    }
}

fn at_rcpt(reply: &Reply, permanent: bool, of_a_mailbox: bool) -> (Verdict, Reason) {
    use Verdict as V;
    if !permanent {
        return match reply {
            reply if reply.is("4.7.") => (V::RecipientTemporary, Reason::Policy),
            _ => (V::RecipientTemporary, Reason::MailboxBusy),
        };
    }
    match reply.code {
        _ if reply.is("5.2.2") => (V::RecipientPermanent, Reason::MailboxBusy),
        _ if reply.is("5.2.3") || reply.is("5.3.4") => (V::MessagePermanent, Reason::TooLarge),
        _ if reply.is("5.7.") => (V::MessagePermanent, Reason::Policy),
        _ if reply.is("5.1.7") || reply.is("5.1.8") => (V::MessagePermanent, Reason::Sender),
        _ if reply.is("5.1.") || reply.is("5.2.") || reply.is("5.4.") => {
            (V::RecipientPermanent, Reason::Mailbox)
        }
        552 if of_a_mailbox => (V::RecipientPermanent, Reason::MailboxBusy),
        552 => (V::MessagePermanent, Reason::TooLarge),
        500 | 502 | 503 | 504 => (V::Provider, Reason::Protocol),
        501 | 553 | 555 => (V::RecipientPermanent, Reason::Malformed),
        554 if !of_a_mailbox => (V::MessagePermanent, Reason::Policy),
        _ => (V::RecipientPermanent, Reason::Mailbox),
    }
}

fn at_content(reply: &Reply, permanent: bool) -> (Verdict, Reason) {
    use Verdict as V;
    match reply {
        reply
            if reply.is("5.1.1")
                || reply.is("5.1.2")
                || reply.is("5.1.3")
                || reply.is("5.1.6")
                || reply.is("5.2.1") =>
        {
            (V::RecipientPermanent, Reason::Mailbox)
        }
        reply if reply.is("5.2.2") => (V::RecipientPermanent, Reason::MailboxBusy),
        reply if reply.is("4.2.") => (V::RecipientTemporary, Reason::MailboxBusy),
        reply if reply.code == 552 || reply.is("5.3.4") || reply.is("5.2.3") => {
            (V::MessagePermanent, Reason::TooLarge)
        }
        reply if reply.is("x.7.") && permanent => (V::MessagePermanent, Reason::Policy),
        reply if reply.is("4.7.") => (V::MessageTemporary, Reason::Policy),
        reply if matches!(reply.code, 500 | 502 | 503 | 504) => (V::Provider, Reason::Protocol),
        _ if permanent => (V::MessagePermanent, Reason::Content),
        _ => (V::MessageTemporary, Reason::Unavailable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Phase as P;
    use Reason as R;
    use Verdict as V;

    fn reply(text: &str) -> Reply {
        Reply::parse(&[text.to_owned()]).expect("a reply")
    }

    #[test]
    fn replies_that_servers_give() {
        let rules = Rules::default();
        for (phase, text, verdict, reason) in [
            (P::Connect, "554 5.7.1 you are listed", V::Provider, R::Policy),
            (P::Connect, "421 4.3.2 shutting down", V::Provider, R::Unavailable),
            (P::Connect, "450 busy", V::Provider, R::Unavailable),
            (P::Starttls, "454 4.7.0 TLS not available", V::Provider, R::Tls),
            (P::Auth, "535 5.7.8 bad credentials", V::Provider, R::Authentication),
            (P::Auth, "454 4.7.0 temporary authentication failure", V::Provider, R::Authentication),
            (P::Mail, "530 5.7.0 authentication required", V::Provider, R::Authentication),
            (P::Mail, "550 5.7.1 sender is not allowed", V::Provider, R::Sender),
            (P::Mail, "553 5.1.8 sender's domain does not exist", V::Provider, R::Sender),
            (P::Mail, "552 5.3.4 message too big", V::MessagePermanent, R::TooLarge),
            (P::Mail, "452 4.3.1 insufficient system storage", V::Provider, R::Unavailable),
            (P::Mail, "452 daily quota exceeded", V::Provider, R::Quota),
            (P::Mail, "451 4.3.0 internal error", V::Provider, R::Unavailable),
            (P::Mail, "503 5.5.1 bad sequence", V::Provider, R::Protocol),
            (P::Rcpt, "550 5.1.1 no such user", V::RecipientPermanent, R::Mailbox),
            (P::Rcpt, "550 no such user", V::RecipientPermanent, R::Mailbox),
            (P::Rcpt, "550 5.7.1 blocked by policy", V::MessagePermanent, R::Policy),
            (P::Rcpt, "554 5.7.1 relay access denied", V::MessagePermanent, R::Policy),
            (P::Rcpt, "552 5.2.2 mailbox full", V::RecipientPermanent, R::MailboxBusy),
            (P::Rcpt, "452 4.2.2 mailbox over quota", V::RecipientTemporary, R::MailboxBusy),
            (P::Rcpt, "452 4.5.3 too many recipients", V::RecipientTemporary, R::MailboxBusy),
            (P::Rcpt, "452 4.5.3 daily sending quota exceeded", V::Provider, R::Quota),
            (P::Rcpt, "451 4.7.1 greylisted", V::RecipientTemporary, R::Policy),
            (P::Rcpt, "450 4.2.1 try again in 300 seconds", V::RecipientTemporary, R::MailboxBusy),
            (P::Rcpt, "421 4.7.0 closing", V::Provider, R::Unavailable),
            (P::Rcpt, "550 5.4.5 Daily user sending limit exceeded", V::Provider, R::Quota),
            (P::Final, "454 Throttling failure: Maximum sending rate exceeded.", V::Provider, R::RateLimited),
            (P::Final, "454 Throttling failure: Daily message quota exceeded.", V::Provider, R::Quota),
            (P::Data, "421 4.3.0 going away", V::Provider, R::Unavailable),
            (P::Final, "552 5.3.4 message size exceeds limit", V::MessagePermanent, R::TooLarge),
            (P::Final, "552 size limit exceeded for your account", V::MessagePermanent, R::TooLarge),
            (P::Final, "554 5.6.0 malformed", V::MessagePermanent, R::Content),
            (P::Final, "550 5.7.1 looks like spam", V::MessagePermanent, R::Policy),
            (P::Final, "550 5.1.1 no such user", V::RecipientPermanent, R::Mailbox),
            (P::Final, "451 4.7.1 greylisted", V::MessageTemporary, R::Policy),
            (P::Final, "451 try later", V::MessageTemporary, R::Unavailable),
            (P::Final, "452 4.3.1 disk full", V::Provider, R::Unavailable),
        ] {
            assert_eq!(rules.classify(phase, &reply(text)), (verdict, reason), "{phase:?} {text}");
        }
    }

    #[test]
    fn the_operators_rules_come_first() {
        let rules = Rules::parse(
            r#"[{"codes": ["550"], "texts": ["Too Much Mail"], "verdict": "recipient_temporary", "reason": "rate_limited"},
                {"phases": ["mail"], "enhanced": ["5.7."], "verdict": "message_permanent", "reason": "sender"}]"#,
        )
        .expect("sound");
        let classify = |phase, text: &str| rules.classify(phase, &reply(text));
        assert_eq!(
            classify(P::Rcpt, "550 5.7.1 too much mail from you"),
            (V::RecipientTemporary, R::RateLimited)
        );
        assert_eq!(classify(P::Mail, "550 5.7.1 no"), (V::MessagePermanent, R::Sender));
        assert_eq!(classify(P::Rcpt, "550 5.7.1 no"), (V::MessagePermanent, R::Policy));
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        for (json, told) in [
            ("[{\n\"verdict\": \"nobody\"}]", "line 2: unknown variant `nobody`"),
            (r#"[{"verdict": "provider", "reason": "quota"}]"#, "rule 1 names no code"),
            (r#"[{"codes": ["250"], "verdict": "provider", "reason": "quota"}]"#, "`250` is no code"),
            (r#"[{"code": ["550"], "verdict": "provider", "reason": "quota"}]"#, "unknown field `code`"),
        ] {
            let error = Rules::parse(json).map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
