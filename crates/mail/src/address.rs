//! Addresses of mailboxes.

use std::fmt;

/// A mailbox's address in the form that goes into an envelope: `local@domain`, the domain in lower case and ASCII.
///
/// Stricter than the standard where the standard allows what no mailbox of ours needs and mail programs disagree about:
/// quoted local parts, comments, addresses of hosts in brackets, a hyphen in front (which a mail server's command line would
/// take for an option).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    whole: String,
    at: usize,
}

/// A text that is no address. Does not repeat the text: it may be anybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing, or nothing on one side of the `@`.
    #[error("an address has the form name@example.com")]
    Form,
    /// Control characters, spaces, angle brackets, or characters that only a quoted name may have.
    #[error("the part before the @ has a character that is not allowed there")]
    Local,
    /// Longer than 64 bytes before the `@`, or 254 in all.
    #[error("the address is too long: at most 64 bytes before the @, 254 in all")]
    Long,
    /// Not a name in the DNS.
    #[error("the part behind the @ is no domain name")]
    Domain,
}

impl Address {
    /// Reads an address without a name beside it.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = text.rsplit_once('@').ok_or(AddressError::Form)?;
        if local.is_empty() || domain.is_empty() {
            return Err(AddressError::Form);
        }
        if local.len() > 64 || domain.len() > 255 {
            return Err(AddressError::Long);
        }
        let allowed =
            |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c) || is_letter(c);
        let dots = local.starts_with('.') || local.ends_with('.') || local.contains("..");
        if dots || local.starts_with('-') || !local.chars().all(allowed) {
            return Err(AddressError::Local);
        }
        let domain = domain_to_ascii(domain).ok_or(AddressError::Domain)?;
        let at = local.len();
        let whole = format!("{local}@{domain}");
        if whole.len() > 254 { Err(AddressError::Long) } else { Ok(Self { whole, at }) }
    }

    /// The whole address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.whole
    }

    /// What stands before the `@`.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.whole[..self.at]
    }

    /// What stands behind the `@`, in ASCII and lower case.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.whole[self.at + 1..]
    }

    /// True when only a server that offers SMTPUTF8 can take it.
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        !self.local().is_ascii()
    }

    /// The form that addresses are compared in: all in lower case. Servers that tell `Kim@` from `kim@` are not met; people
    /// who write one and then the other are.
    #[must_use]
    pub fn normalised(&self) -> String {
        self.whole.to_lowercase()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

/// Letters and digits of other scripts; not the invisible characters that two different names could be told apart by.
fn is_letter(c: char) -> bool {
    !c.is_ascii() && c.is_alphanumeric()
}

fn domain_to_ascii(domain: &str) -> Option<String> {
    let ascii = idna::domain_to_ascii_strict(domain).ok()?;
    let ascii = ascii.strip_suffix('.').unwrap_or(&ascii);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = ascii.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|byte| byte.is_ascii_digit());
    (!numeric && ascii.len() <= 253 && ascii.split('.').all(label)).then(|| ascii.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_mailboxes_have() {
        for (given, kept) in [
            ("kim@example.com", "kim@example.com"),
            ("Kim.Berger+x@EXAMPLE.com", "Kim.Berger+x@example.com"),
            ("kim@bücher.example", "kim@xn--bcher-kva.example"),
            ("kïm@example.com", "kïm@example.com"),
            ("noreply@localhost", "noreply@localhost"),
            ("o'neil@example.co.uk", "o'neil@example.co.uk"),
        ] {
            assert_eq!(
                Address::parse(given).map(|address| address.to_string()).as_deref(),
                Ok(kept),
                "{given}"
            );
        }
        assert!(Address::parse("kïm@example.com").is_ok_and(|address| address.needs_smtputf8()));
        let address = Address::parse("Kim@Example.COM").expect("an address");
        assert_eq!((address.local(), address.domain()), ("Kim", "example.com"));
        assert_eq!(address.normalised(), "kim@example.com");
    }

    #[test]
    fn everything_else_is_refused() {
        for (given, error) in [
            ("", AddressError::Form),
            ("kim", AddressError::Form),
            ("@example.com", AddressError::Form),
            ("kim@", AddressError::Form),
            ("kim@example.com\r\nRCPT TO:<eve@example.com>", AddressError::Local),
            ("kim\r\n@example.com", AddressError::Local),
            ("kim\0@example.com", AddressError::Local),
            ("kim <kim@example.com", AddressError::Local),
            ("<kim@example.com>", AddressError::Local),
            ("kim berger@example.com", AddressError::Local),
            ("\"kim berger\"@example.com", AddressError::Local),
            ("a@b@example.com", AddressError::Local),
            (".kim@example.com", AddressError::Local),
            ("k..im@example.com", AddressError::Local),
            ("-oQ/tmp@example.com", AddressError::Local),
            ("kim\u{200b}@example.com", AddressError::Local),
            ("kim@[127.0.0.1]", AddressError::Domain),
            ("kim@127.0.0.1", AddressError::Domain),
            ("kim@exa mple.com", AddressError::Domain),
            ("kim@-example.com", AddressError::Domain),
            ("kim@example..com", AddressError::Domain),
            ("kim@example.com>", AddressError::Domain),
        ] {
            assert_eq!(Address::parse(given), Err(error), "{given:?}");
        }
        assert_eq!(Address::parse(&format!("{}@example.com", "k".repeat(65))), Err(AddressError::Long));
        assert_eq!(Address::parse(&format!("k@{}.com", "a.".repeat(130))), Err(AddressError::Long));
    }
}
