use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use url::Url;
use voiceai_runtime::Secret;

use crate::{Address, Class};

/// Longer tokens are not of our making.
const TOKEN_LONGEST: usize = 800;
/// What a token's content begins with: another form would have another.
const FORM: &str = "1";

/// Who wants to get no more of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Lower case.
    pub address: String,
    /// On whose behalf the mail was sent.
    pub tenant: Option<String>,
    /// The class that ends.
    pub class: Class,
}

/// Makes and reads the links that end a subscription.
///
/// A link holds a token and nothing that a proxy's log or a forwarded mail would give away: what it stands for is encrypted
/// (AES-256-GCM-SIV) under a nonce that is an HMAC-SHA256 of it, so that a token cannot be made or changed without the key, and
/// the same recipient gets the same link in every mail. It holds for as long as the key does.
#[derive(Clone)]
pub struct Links {
    base: Url,
    seal: Arc<LessSafeKey>,
    mac: [u8; 32],
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

/// Links cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Mail programs accept one click over HTTPS alone (RFC 8058).
    #[error("MAIL_PUBLIC_URL must begin with https://")]
    NotHttps,
    /// The library refused the key.
    #[error("MAIL_UNSUBSCRIBE_SECRET cannot be used")]
    Key,
}

impl Links {
    /// Links below `base` (`MAIL_PUBLIC_URL`), by `secret` (`MAIL_UNSUBSCRIBE_SECRET`).
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn new(base: &Url, secret: &Secret) -> Result<Self, LinkError> {
        if base.scheme() != "https" || base.host_str().is_none() {
            return Err(LinkError::NotHttps);
        }
        let key = derive(secret, b"voiceai unsubscribe seal")?;
        let seal = UnboundKey::new(&AES_256_GCM_SIV, &key).map_err(|_| LinkError::Key)?;
        let mac = derive(secret, b"voiceai unsubscribe mac")?;
        let mut base = base.clone();
        base.set_query(None);
        base.set_fragment(None);
        Ok(Self { base, seal: Arc::new(LessSafeKey::new(seal)), mac })
    }

    /// The link for one recipient. `None` for login codes, which nobody can end.
    #[must_use]
    pub fn link(&self, address: &Address, tenant: Option<&str>, class: Class) -> Option<String> {
        if class == Class::Auth {
            return None;
        }
        let content = [FORM, class.as_str(), tenant.unwrap_or_default(), &address.normalised()].join("\n");
        let token = self.seal(content.as_bytes())?;
        Some(format!("{}/unsubscribe/{token}", self.base.as_str().trim_end_matches('/')))
    }

    /// What a token stands for; `None` when it is not one of ours.
    #[must_use]
    pub fn read(&self, token: &str) -> Option<Unsubscribe> {
        let content = self.open(token)?;
        let mut parts = content.splitn(4, '\n');
        let (form, class, tenant, address) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let class: Class = class.parse().ok()?;
        let tenant = (!tenant.is_empty()).then(|| tenant.to_owned());
        (form == FORM && class != Class::Auth).then(|| Unsubscribe {
            address: address.to_owned(),
            tenant,
            class,
        })
    }

    fn nonce(&self, content: &[u8]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.mac) {
            mac.update(content);
            nonce.copy_from_slice(&mac.finalize().into_bytes()[..NONCE_LEN]);
        }
        nonce
    }

    fn seal(&self, content: &[u8]) -> Option<String> {
        let nonce = self.nonce(content);
        let mut sealed = content.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.seal.seal_in_place_append_tag(unique, Aad::empty(), &mut sealed).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat()))
    }

    fn open(&self, token: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok().filter(|_| token.len() <= TOKEN_LONGEST)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let unique = Nonce::assume_unique_for_key(*nonce);
        let content = self.seal.open_in_place(unique, Aad::empty(), &mut sealed).ok()?;
        verify_slices_are_equal(&self.nonce(content), nonce).ok()?;
        String::from_utf8(content.to_vec()).ok()
    }
}

/// A key of its own for each use of the secret.
fn derive(secret: &Secret, purpose: &[u8]) -> Result<[u8; 32], LinkError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).map_err(|_| LinkError::Key)?;
    mac.update(purpose);
    Ok(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(secret: &str) -> Links {
        let base = Url::parse("https://mail.example.com/m/").expect("a URL");
        Links::new(&base, &Secret::new(secret)).expect("sound")
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn token(link: &str) -> &str {
        link.rsplit('/').next().unwrap_or_default()
    }

    #[test]
    fn a_link_reads_back_and_shows_nobody() {
        let links = links(KEY);
        let address = Address::parse("Kim@Example.com").expect("an address");
        let link = links.link(&address, Some("acme"), Class::Marketing).expect("a link");
        assert!(link.starts_with("https://mail.example.com/m/unsubscribe/"), "{link}");
        assert!(!link.to_lowercase().contains("kim") && !link.contains("acme"));
        let read = links.read(token(&link)).expect("ours");
        let tenant = Some("acme".to_owned());
        assert_eq!(read, Unsubscribe { address: "kim@example.com".into(), tenant, class: Class::Marketing });
        assert_eq!(
            links.link(&address, Some("acme"), Class::Marketing).as_ref(),
            Some(&link),
            "the same each time"
        );
        assert_ne!(links.link(&address, None, Class::Marketing).as_ref(), Some(&link));
        assert_eq!(links.link(&address, None, Class::Auth), None);
    }

    #[test]
    fn a_token_cannot_be_made_or_changed() {
        let address = Address::parse("kim@example.com").expect("an address");
        let link = links(KEY).link(&address, None, Class::Marketing).expect("a link");
        let token = token(&link);
        assert_eq!(links("another key of thirty-two bytes!").read(token), None);
        for at in 0..token.len() {
            let mut changed = token.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            // The last character has bits that stand for nothing.
            assert!(at + 1 == token.len() || links(KEY).read(&changed).is_none(), "{at}");
        }
        for nonsense in ["", "x", "AAAA", &"A".repeat(1000), "../../etc"] {
            assert_eq!(links(KEY).read(nonsense), None);
        }
    }

    #[test]
    fn one_click_needs_https() {
        let base = Url::parse("http://mail.example.com").expect("a URL");
        assert_eq!(Links::new(&base, &Secret::new(KEY)).map(|_| ()), Err(LinkError::NotHttps));
    }
}
