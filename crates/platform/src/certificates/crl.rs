//! The revocation list: RFC 5280, version 2, signed by the authority.

use jiff::{SignedDuration, Timestamp};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::der::asn1::{BitString, OctetString};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::pem::{LineEnding, PemLabel as _};
use x509_cert::der::{Encode, EncodePem as _};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, CrlNumber, CrlReason};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Time;
use x509_cert::{Version, der};

use super::authority::{Authority, AuthorityError, der as encoded};

/// A certificate that is valid no longer, by its serial number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Big-endian, without leading zeros beyond the one that keeps it positive.
    pub serial: Vec<u8>,
    /// Since when.
    pub at: Timestamp,
    /// Why, in the platform's words; what is not among the standard's reasons is left out of the list.
    pub reason: Option<String>,
}

/// The serial number of a row: out of its certificate where the row has one, else out of its own text, in hexadecimal digits with or
/// without `0x` and colons.
///
/// # Errors
/// In words, for a text that is no serial number.
pub fn serial(pem: Option<&str>, text: Option<&str>) -> Result<Vec<u8>, &'static str> {
    if let Some(certificate) = pem.and_then(parse_certificate) {
        return Ok(certificate.tbs_certificate().serial_number().as_bytes().to_vec());
    }
    let text = text.unwrap_or_default().trim();
    let text = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    if digits.is_empty() || digits.len() > 40 {
        return Err("its serial number has not 1 to 40 hexadecimal digits");
    }
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let nibbles: Option<Vec<u8>> = digits.into_iter().map(value).collect();
    let mut nibbles = nibbles.ok_or("its serial number is not hexadecimal")?;
    if nibbles.len() % 2 == 1 {
        nibbles.insert(0, 0);
    }
    let bytes: Vec<u8> = nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let first = bytes.iter().position(|byte| *byte != 0).ok_or("its serial number is 0")?;
    Ok(bytes[first..].to_vec())
}

/// The first certificate of a PEM text.
pub(super) fn parse_certificate(pem: &str) -> Option<CertificateInner<Raw>> {
    CertificateInner::<Raw>::load_pem_chain(pem.as_bytes()).ok()?.into_iter().next()
}

/// The list as PEM. Whatever the order of `revoked`, the same rows make the same entries; of two with one serial number the earlier one counts.
///
/// # Errors
/// [`AuthorityError`] when it cannot be encoded or signed.
pub fn build(
    authority: &Authority,
    revoked: &[Revoked],
    number: u64,
    now: Timestamp,
    lifetime: SignedDuration,
) -> Result<String, AuthorityError> {
    let mut sorted: Vec<&Revoked> = revoked.iter().collect();
    sorted.sort_by(|a, b| (a.serial.len(), &a.serial, a.at).cmp(&(b.serial.len(), &b.serial, b.at)));
    sorted.dedup_by(|later, earlier| later.serial == earlier.serial);
    let entries = sorted.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    let key_id = AuthorityKeyIdentifier { key_identifier: authority.key_id()?, ..Default::default() };
    let mut extensions = vec![extension(&CrlNumber::try_from(number)?)?];
    if key_id.key_identifier.is_some() {
        extensions.insert(0, extension(&key_id)?);
    }
    let body = TbsCertList::<Raw> {
        version: Version::V2,
        signature: authority.algorithm().clone(),
        issuer: authority.subject().clone(),
        this_update: time(now)?,
        next_update: Some(time(now + lifetime)?),
        revoked_certificates: (!entries.is_empty()).then_some(entries),
        crl_extensions: Some(extensions),
    };
    let signature = authority.sign(&encoded(&body)?)?;
    let list = CertificateList::<Raw> {
        tbs_cert_list: body,
        signature_algorithm: authority.algorithm().clone(),
        signature: BitString::from_bytes(&signature)?,
    };
    debug_assert_eq!(CertificateList::<Raw>::PEM_LABEL, "X509 CRL");
    Ok(list.to_pem(LineEnding::LF)?)
}

fn entry(revoked: &Revoked) -> Result<RevokedCert<Raw>, AuthorityError> {
    let reason = revoked.reason.as_deref().and_then(reason);
    let extensions = reason.map(|reason| Ok::<_, AuthorityError>(vec![extension(&reason)?])).transpose()?;
    Ok(RevokedCert {
        serial_number: SerialNumber::new(&revoked.serial)?,
        revocation_date: time(revoked.at)?,
        crl_entry_extensions: extensions,
    })
}

/// A reason of the standard, however it is spelt. `unspecified` is left out, as the standard asks.
fn reason(text: &str) -> Option<CrlReason> {
    let word: String =
        text.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
    Some(match word.as_str() {
        "keycompromise" => CrlReason::KeyCompromise,
        "cacompromise" => CrlReason::CaCompromise,
        "affiliationchanged" => CrlReason::AffiliationChanged,
        "superseded" => CrlReason::Superseded,
        "cessationofoperation" => CrlReason::CessationOfOperation,
        "privilegewithdrawn" => CrlReason::PrivilegeWithdrawn,
        "aacompromise" => CrlReason::AaCompromise,
        _ => return None,
    })
}

fn extension<T: AssociatedOid + Encode>(value: &T) -> Result<Extension, AuthorityError> {
    Ok(Extension { extn_id: T::OID, critical: false, extn_value: OctetString::new(encoded(value)?)? })
}

/// To the second, in the form that the standard asks for: two-digit years until 2049.
fn time(at: Timestamp) -> Result<Time, der::Error> {
    let seconds = u64::try_from(at.as_second()).unwrap_or(0);
    let since = std::time::Duration::from_secs(seconds);
    Time::try_from(std::time::UNIX_EPOCH + since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_read_however_it_is_written() {
        for text in ["0A1b2C", "a1b2c", "0x0a1b2c", "0a:1b:2c", " 0a1b2c ", "000a1b2c"] {
            assert_eq!(serial(None, Some(text)), Ok(vec![0x0a, 0x1b, 0x2c]), "{text}");
        }
        assert_eq!(serial(None, Some("ff")), Ok(vec![0xff]));
        for wrong in [None, Some(""), Some("0"), Some("xyz"), Some(&"1".repeat(41)[..]), Some("-1")] {
            assert!(serial(None, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn reasons_are_the_standards_and_others_are_left_out() {
        assert_eq!(reason("key_compromise"), Some(CrlReason::KeyCompromise));
        assert_eq!(reason("keyCompromise"), Some(CrlReason::KeyCompromise));
        assert_eq!(reason("Superseded"), Some(CrlReason::Superseded));
        for other in ["unspecified", "lost by the courier", ""] {
            assert_eq!(reason(other), None, "{other}");
        }
    }
}
