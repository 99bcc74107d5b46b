use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lettre::transport::smtp::authentication::{Credentials as LettreCredentials, Mechanism};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Auth, Data, Mail, Noop, Quit, Rcpt, Rset};
use lettre::transport::smtp::extension::{MailBodyParameter, MailParameter};
use tokio::time::{Instant, sleep_until, timeout};

use super::fault::{Fault, Kind};
use super::wire::{Seen, look};
use crate::Address;
use crate::transport::settings::Credentials;
use crate::transport::{Outgoing, Phase, Reason, Reply, Stage};

/// A content that moves may take this many times the limit of a phase: one that creeps would outlast its claim.
pub(in crate::transport) const CONTENT_PHASES: u32 = 10;

/// What a server offers in its answer to EHLO.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Offers {
    pub(super) starttls: bool,
    pub(super) smtputf8: bool,
    pub(super) eight_bit: bool,
    /// The largest mail in bytes; 0 is as many as one likes.
    pub(super) size: Option<u64>,
    /// Upper case.
    pub(super) auth: Vec<String>,
}

impl Offers {
    pub(super) fn read<'l>(lines: impl Iterator<Item = &'l str>) -> Self {
        let mut offers = Self::default();
        for line in lines {
            // `AUTH=LOGIN PLAIN` is how servers wrote it before there was a standard, and some still do.
            let upper = line.to_ascii_uppercase().replacen("AUTH=", "AUTH ", 1);
            let mut words = upper.split_whitespace();
            match words.next() {
                Some("STARTTLS") => offers.starttls = true,
                Some("SMTPUTF8") => offers.smtputf8 = true,
                Some("8BITMIME") => offers.eight_bit = true,
                Some("SIZE") => offers.size = words.next().and_then(|size| size.parse().ok()).or(Some(0)),
                Some("AUTH") => offers.auth.extend(words.map(ToOwned::to_owned)),
                _ => {}
            }
        }
        offers
    }
}

/// One open connection.
pub(super) struct Session {
    connection: AsyncSmtpConnection,
    seen: Arc<Mutex<Seen>>,
    offers: Offers,
    pub(super) tls: String,
    /// Whom it is logged in as.
    pub(super) credentials: Option<Credentials>,
    /// Mails that were sent over it.
    pub(super) mails: u32,
    /// Not to be used again.
    pub(super) spent: bool,
}

impl Session {
    pub(super) fn new(
        connection: AsyncSmtpConnection,
        seen: Arc<Mutex<Seen>>,
        offers: Offers,
        tls: String,
    ) -> Self {
        Self { connection, seen, offers, tls, credentials: None, mails: 0, spent: false }
    }

    /// AUTH, by the first of PLAIN and LOGIN that the server offers.
    pub(super) async fn log_in(&mut self, credentials: &Credentials, limit: Duration) -> Result<(), Fault> {
        let offered = |name: &str| self.offers.auth.iter().any(|mechanism| mechanism == name);
        let mechanism = match (offered("PLAIN"), offered("LOGIN")) {
            (true, _) => Mechanism::Plain,
            (false, true) => Mechanism::Login,
            (false, false) => {
                let offers =
                    if self.offers.auth.is_empty() { "none".to_owned() } else { self.offers.auth.join(", ") };
                let text = format!(
                    "the server takes neither AUTH PLAIN nor LOGIN; it offers {offers}; correct the server, or unset SMTP_USER and SMTP_PASS"
                );
                return Err(Fault::way(Phase::Auth, Reason::Authentication, text));
            }
        };
        let secret =
            LettreCredentials::new(credentials.user.clone(), credentials.password.expose().to_owned());
        let unfit =
            |_| Fault::way(Phase::Auth, Reason::Protocol, "the server's challenge cannot be answered");
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        let first = Auth::new(mechanism, secret.clone(), None).map_err(unfit)?;
        let mut response = self.command(first, Phase::Auth, left()).await?;
        // User and password, each asked for once.
        for _ in 0..2 {
            if !response.has_code(334) {
                break;
            }
            let answer = Auth::new_from_response(mechanism, secret.clone(), &response).map_err(unfit)?;
            response = self.command(answer, Phase::Auth, left()).await?;
        }
        if !response.has_code(235) {
            let text = format!("the server answered AUTH with {}", response.code());
            return Err(Fault::way(Phase::Auth, Reason::Protocol, text));
        }
        self.credentials = Some(credentials.clone());
        Ok(())
    }

    /// Hands one mail over.
    pub(super) async fn deliver(
        &mut self,
        mail: &Outgoing,
        from: &Address,
        to: &Address,
        stage: &dyn Stage,
        limit: Duration,
        final_limit: Duration,
    ) -> Result<Reply, Fault> {
        let sent = self.converse(mail, from, to, stage, limit, final_limit).await;
        if sent.is_ok() {
            self.mails += 1;
        } else if !self.spent {
            // The next mail finds no half of this one.
            self.spent = self.command(Rset, Phase::Mail, limit).await.is_err();
        }
        sent
    }

    async fn converse(
        &mut self,
        mail: &Outgoing,
        from: &Address,
        to: &Address,
        stage: &dyn Stage,
        limit: Duration,
        final_limit: Duration,
    ) -> Result<Reply, Fault> {
        let parameters = self.parameters(mail, from, to)?;
        let command = Mail::new(Some(spoken(from, Phase::Mail)?), parameters);
        self.expect(command, Phase::Mail, limit, 2).await?;
        self.expect(Rcpt::new(spoken(to, Phase::Rcpt)?, Vec::new()), Phase::Rcpt, limit, 2).await?;
        if let Err(withdraw) = stage.content_begins().await {
            return Err(Fault { phase: Phase::Data, kind: Kind::Withdrawn(withdraw.0) });
        }
        self.expect(Data, Phase::Data, limit, 3).await?;
        self.content(&mail.bytes, limit, final_limit).await
    }

    fn parameters(&self, mail: &Outgoing, from: &Address, to: &Address) -> Result<Vec<MailParameter>, Fault> {
        let mut parameters = Vec::new();
        let size = u64::try_from(mail.bytes.len()).unwrap_or(u64::MAX);
        if let Some(most) = self.offers.size {
            if most > 0 && size > most {
                let text = format!("not sent: the mail has {size} bytes and the server takes {most}");
                return Err(Fault { phase: Phase::Mail, kind: Kind::Mail(Reason::TooLarge, text) });
            }
            parameters.push(MailParameter::Size(mail.bytes.len()));
        }
        if from.needs_smtputf8() || to.needs_smtputf8() || !mail.bytes.is_ascii() {
            if !self.offers.smtputf8 || !self.offers.eight_bit {
                let text = "not sent: an address has letters that are not ASCII before its @, and the server does not offer SMTPUTF8";
                return Err(Fault {
                    phase: Phase::Mail,
                    kind: Kind::Mail(Reason::Malformed, text.to_owned()),
                });
            }
            parameters.push(MailParameter::SmtpUtfEight);
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        Ok(parameters)
    }

    /// Writes the content and waits for the reply to the final dot; each has its own limit. A content that moves may take
    /// longer than the limit: what is bounded is the time without a byte written.
    async fn content(
        &mut self,
        bytes: &[u8],
        limit: Duration,
        final_limit: Duration,
    ) -> Result<Reply, Fault> {
        // The library ends the last line by itself.
        let content = bytes.strip_suffix(b"\r\n").unwrap_or(bytes);
        {
            let mut seen = look(&self.seen);
            seen.ask();
            seen.in_content = true;
            seen.dot_sent = false;
            seen.progress = Instant::now();
        }
        let seen = Arc::clone(&self.seen);
        let ended =
            guarded(&seen, self.connection.message_iter(content.chunks(64 * 1024)), limit, final_limit);
        let ended = ended.await;
        let is_cut_off = matches!(ended, Err(Some(_))) && !look(&self.seen).dot_sent;
        if is_cut_off && look(&self.seen).reply().is_none() {
            // A server that has enough may say so before it hangs up.
            let _ = timeout(Duration::from_secs(1), self.connection.read_response()).await;
        }
        let (dot_sent, reply) = {
            let mut seen = look(&self.seen);
            seen.in_content = false;
            (seen.dot_sent, seen.reply())
        };
        let phase = if dot_sent { Phase::Final } else { Phase::Data };
        if ended.is_err() || reply.is_none() {
            self.spent = true;
        }
        match (ended, reply) {
            (Ok(_), Some(reply)) if reply.code < 300 => Ok(reply),
            (Ok(_) | Err(Some(_)), Some(reply)) if reply.code >= 400 => {
                self.spent |= reply.code == 421 || !dot_sent;
                // A refusal that was read although the library failed is a refusal all the same.
                self.spent |= look(&self.seen).ended;
                Err(Fault { phase, kind: Kind::Reply(reply) })
            }
            (Ok(_), reply) => {
                self.spent = true;
                let text =
                    format!("the server answered the content with {}", reply.map_or(0, |reply| reply.code));
                Err(Fault { phase, kind: Kind::Broken(text) })
            }
            (Err(Some(error)), _) => Err(match Fault::spoken(phase, &error, &self.seen).kind {
                Kind::Way(_, text) | Kind::Broken(text) => Fault { phase, kind: Kind::Broken(text) },
                kind => Fault { phase, kind },
            }),
            (Err(None), _) if dot_sent => {
                Err(Fault::timed_out(phase, format!("no reply to the final dot within {final_limit:?}")))
            }
            (Err(None), _) => Err(Fault::timed_out(
                phase,
                format!("the content did not move for {limit:?}, or took ten times as long"),
            )),
        }
    }

    /// True when the server still answers.
    pub(super) async fn is_alive(&mut self, limit: Duration) -> bool {
        !self.spent && self.command(Noop, Phase::Mail, limit).await.is_ok()
    }

    /// Takes leave; not waited for longer than a moment.
    pub(super) async fn quit(mut self) {
        if !self.spent {
            let _ = self.command(Quit, Phase::Final, Duration::from_secs(2)).await;
        }
    }

    async fn expect(
        &mut self,
        command: impl Display,
        phase: Phase,
        limit: Duration,
        class: u16,
    ) -> Result<(), Fault> {
        let response = self.command(command, phase, limit).await?;
        let code = u16::from(response.code());
        if code / 100 == class {
            return Ok(());
        }
        self.spent = true;
        Err(Fault::way(
            phase,
            Reason::Protocol,
            format!("the server answered {code} where {class}xx was expected"),
        ))
    }

    async fn command(
        &mut self,
        command: impl Display,
        phase: Phase,
        limit: Duration,
    ) -> Result<lettre::transport::smtp::response::Response, Fault> {
        let unasked = {
            let mut seen = look(&self.seen);
            seen.ask();
            seen.unasked
        };
        if unasked {
            self.spent = true;
            return Err(Fault::broken(
                phase,
                Reason::Network,
                "the server spoke without being asked".to_owned(),
            ));
        }
        match timeout(limit, self.connection.command(command)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let fault = Fault::spoken(phase, &error, &self.seen);
                self.spent |= look(&self.seen).ended || !matches!(fault.kind, Kind::Reply(_));
                Err(fault)
            }
            Err(_) => {
                self.spent = true;
                Err(Fault::timed_out(phase, format!("no answer to {} within {limit:?}", verb(phase))))
            }
        }
    }
}

const fn verb(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "EHLO",
        Phase::Starttls => "STARTTLS",
        Phase::Auth => "AUTH",
        Phase::Mail => "MAIL",
        Phase::Rcpt => "RCPT",
        Phase::Data => "DATA",
        Phase::Final => "the final dot",
    }
}

fn spoken(address: &Address, phase: Phase) -> Result<lettre::Address, Fault> {
    lettre::Address::new(address.local(), address.domain()).map_err(|_| Fault {
        phase,
        kind: Kind::Mail(Reason::Malformed, "not sent: the address cannot be said in SMTP".to_owned()),
    })
}

/// Runs the writing of content; `Err(None)` when it stood still for too long.
async fn guarded<T, E>(
    seen: &Mutex<Seen>,
    writing: impl Future<Output = Result<T, E>>,
    limit: Duration,
    final_limit: Duration,
) -> Result<T, Option<E>> {
    tokio::pin!(writing);
    let latest = Instant::now() + limit * CONTENT_PHASES;
    let deadline = || {
        let seen = look(seen);
        if seen.dot_sent { seen.progress + final_limit } else { (seen.progress + limit).min(latest) }
    };
    // Which of the two limits holds may change while it is waited for.
    let step = limit.min(final_limit);
    loop {
        let wake = deadline().min(Instant::now() + step);
        tokio::select! {
            ended = &mut writing => return ended.map_err(Some),
            () = sleep_until(wake) => if Instant::now() >= deadline() {
                return Err(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_read_however_they_are_written() {
        let lines = [
            "mail.example.com Hello",
            "size 1000",
            "AUTH=LOGIN plain",
            "auth CRAM-MD5",
            "8bitmime",
            "SMTPUTF8",
            "StartTLS",
            "",
        ];
        let offers = Offers::read(lines.into_iter());
        assert_eq!(offers.auth, ["LOGIN", "PLAIN", "CRAM-MD5"]);
        assert_eq!(offers.size, Some(1000));
        assert!(offers.starttls && offers.smtputf8 && offers.eight_bit);
        assert_eq!(Offers::read(["SIZE"].into_iter()).size, Some(0));
        assert_eq!(Offers::read(["x"].into_iter()), Offers::default());
    }
}
