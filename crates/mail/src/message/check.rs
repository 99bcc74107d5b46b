use std::fmt;

/// The most bytes of a line, its line end not counted (RFC 5322, RFC 5321).
const LINE_LONGEST: usize = 998;

/// Why bytes must not be sent as a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// A carriage return without a line feed, or the other way round: a server may take it for the end of the mail and what
    /// follows for commands.
    BareLineEnd {
        /// The line it stands in, counted from 1.
        line: usize,
    },
    /// A NUL, which servers cut mail at or refuse.
    Nul {
        /// The line it stands in.
        line: usize,
    },
    /// A line longer than 998 bytes.
    LongLine {
        /// Which.
        line: usize,
    },
    /// A byte above 127, where the mail was to be ASCII throughout.
    NotAscii {
        /// The line it stands in.
        line: usize,
    },
    /// A header line that is none: no name, no colon, or nothing to continue.
    Header {
        /// Which.
        line: usize,
    },
    /// A header that must stand there exactly once does not.
    Count {
        /// Its name.
        header: &'static str,
        /// How often it stands there.
        count: usize,
    },
    /// `Message-ID` is not the one that the mail was committed with.
    MessageId,
    /// No empty line ends the headers, or the last line has no end.
    Unfinished,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BareLineEnd { line } => {
                write!(f, "line {line} has a CR or an LF that is not part of a CRLF")
            }
            Self::Nul { line } => write!(f, "line {line} has a NUL"),
            Self::LongLine { line } => write!(f, "line {line} is longer than {LINE_LONGEST} bytes"),
            Self::NotAscii { line } => write!(f, "line {line} has a byte that is not ASCII"),
            Self::Header { line } => write!(f, "line {line} is among the headers and is none"),
            Self::Count { header, count: 0 } => write!(f, "the header {header} is missing"),
            Self::Count { header, count } => write!(f, "the header {header} stands there {count} times"),
            Self::MessageId => f.write_str("the header Message-ID is not the committed one"),
            Self::Unfinished => f.write_str("the end of the headers or of the last line is missing"),
        }
    }
}

impl std::error::Error for Unfit {}

/// Looks at every byte of a mail before the first one is sent.
///
/// The library that speaks SMTP passes bare line ends on (RUSTSEC-2026-0561 and its relatives), and a mail in the database may
/// be older than the code that composed it: so this is asked before every attempt and not only when a mail is composed.
/// `utf8` allows bytes above 127 in headers, for addresses that need SMTPUTF8.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(bytes: &[u8], message_id: &str, utf8: bool) -> Result<(), Unfit> {
    let mut rest = bytes;
    let mut number = 0;
    let mut headers = Headers::default();
    let mut in_headers = true;
    while !rest.is_empty() {
        number += 1;
        let (line, after) = split_line(rest, number)?;
        rest = after;
        if line.len() > LINE_LONGEST {
            return Err(Unfit::LongLine { line: number });
        }
        let allowed = line.is_ascii() || (utf8 && in_headers);
        if !allowed {
            return Err(Unfit::NotAscii { line: number });
        }
        if in_headers && line.is_empty() {
            in_headers = false;
        } else if in_headers {
            headers.take(line, number)?;
        }
    }
    if in_headers {
        return Err(Unfit::Unfinished);
    }
    headers.finish(message_id)
}

/// One line without its CRLF, and what follows it.
fn split_line(bytes: &[u8], line: usize) -> Result<(&[u8], &[u8]), Unfit> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)).ok_or(Unfit::Unfinished)?;
    match &bytes[end..] {
        [b'\r', b'\n', after @ ..] => Ok((&bytes[..end], after)),
        [0, ..] => Err(Unfit::Nul { line }),
        _ => Err(Unfit::BareLineEnd { line }),
    }
}

#[derive(Default)]
struct Headers {
    from: usize,
    date: usize,
    ids: Vec<Vec<u8>>,
    subject: usize,
    any: bool,
    in_id: bool,
}

impl Headers {
    fn take(&mut self, line: &[u8], number: usize) -> Result<(), Unfit> {
        if line.first().is_some_and(|first| matches!(first, b' ' | b'\t')) {
            // A continuation needs something to continue, and must not look like an empty line to lax readers.
            if !self.any || line.iter().all(u8::is_ascii_whitespace) {
                return Err(Unfit::Header { line: number });
            }
            if let (true, Some(id)) = (self.in_id, self.ids.last_mut()) {
                id.extend_from_slice(line);
            }
            return Ok(());
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Unfit::Header { line: number })?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return Err(Unfit::Header { line: number });
        }
        self.any = true;
        self.in_id = name.eq_ignore_ascii_case(b"Message-ID");
        if self.in_id {
            self.ids.push(value.to_vec());
        }
        self.from += usize::from(name.eq_ignore_ascii_case(b"From"));
        self.date += usize::from(name.eq_ignore_ascii_case(b"Date"));
        self.subject += usize::from(name.eq_ignore_ascii_case(b"Subject"));
        Ok(())
    }

    fn finish(self, message_id: &str) -> Result<(), Unfit> {
        let counts = [("From", self.from), ("Date", self.date), ("Message-ID", self.ids.len())];
        if let Some((header, count)) = counts.into_iter().find(|(_, count)| *count != 1) {
            return Err(Unfit::Count { header, count });
        }
        if self.subject > 1 {
            return Err(Unfit::Count { header: "Subject", count: self.subject });
        }
        let wanted = format!("<{message_id}>");
        let id = self.ids.first().map(|id| id.trim_ascii());
        if id == Some(wanted.as_bytes()) { Ok(()) } else { Err(Unfit::MessageId) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &str =
        "From: a@example.com\r\nDate: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n";

    fn checked(text: &str) -> Result<(), Unfit> {
        check(text.as_bytes(), "1@example.com", false)
    }

    #[test]
    fn a_sound_mail_passes() {
        assert_eq!(
            checked(&format!("{HEADERS}Subject: x\r\n folded\r\n\r\n.\r\n..\r\n\r\ntext\r\n")),
            Ok(())
        );
        assert_eq!(checked(&format!("{HEADERS}\r\n")), Ok(()));
        let folded = HEADERS.replace("Message-ID: ", "Message-ID:\r\n ");
        assert_eq!(checked(&format!("{folded}\r\n")), Ok(()));
        assert_eq!(
            check(format!("{HEADERS}To: kïm@example.com\r\n\r\n").as_bytes(), "1@example.com", true),
            Ok(())
        );
    }

    #[test]
    fn what_a_server_could_misunderstand_is_held_back() {
        for (body, unfit) in [
            ("text\r\n.\nMAIL FROM:<eve@example.com>\r\n", Unfit::BareLineEnd { line: 6 }),
            ("text\r\n.\rMAIL FROM:<eve@example.com>\r\n", Unfit::BareLineEnd { line: 6 }),
            ("text\n.\r\n", Unfit::BareLineEnd { line: 5 }),
            ("a\0b\r\n", Unfit::Nul { line: 5 }),
            ("grün\r\n", Unfit::NotAscii { line: 5 }),
            ("no end", Unfit::Unfinished),
            ("no end\r", Unfit::BareLineEnd { line: 5 }),
        ] {
            assert_eq!(checked(&format!("{HEADERS}\r\n{body}")), Err(unfit), "{body:?}");
        }
        let long = format!("{HEADERS}\r\n{}\r\n", "x".repeat(999));
        assert_eq!(checked(&long), Err(Unfit::LongLine { line: 5 }));
        assert_eq!(checked(&long.replace("xx\r", "x\r")), Ok(()));
    }

    #[test]
    fn headers_are_headers_and_stand_there_once() {
        for (headers, unfit) in [
            (format!("{HEADERS}no header\r\n\r\n"), Unfit::Header { line: 4 }),
            (format!("{HEADERS}: empty\r\n\r\n"), Unfit::Header { line: 4 }),
            (format!("{HEADERS} \r\n\r\n"), Unfit::Header { line: 4 }),
            (format!(" first\r\n{HEADERS}\r\n"), Unfit::Header { line: 1 }),
            (format!("{HEADERS}fRoM: eve@example.com\r\n\r\n"), Unfit::Count { header: "From", count: 2 }),
            ("From: a@example.com\r\n\r\n".to_owned(), Unfit::Count { header: "Date", count: 0 }),
            (HEADERS.to_owned(), Unfit::Unfinished),
            (format!("{}\r\n", HEADERS.replace("<1@", "<2@")), Unfit::MessageId),
        ] {
            assert_eq!(checked(&headers), Err(unfit), "{headers:?}");
        }
    }
}
