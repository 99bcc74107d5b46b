use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Where a list of deliveries goes on: behind this one. As text it is base64url of `created_at_ms:delivery_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// When the last one shown was accepted, in Unix milliseconds.
    pub created_at_ms: i64,
    /// Its id.
    pub delivery_id: String,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(format!("{}:{}", self.created_at_ms, self.delivery_id)))
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = "expected the cursor of an earlier page";
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused)?;
        let text = String::from_utf8(bytes).map_err(|_| refused)?;
        let (ms, id) = text.split_once(':').ok_or(refused)?;
        let created_at_ms = ms.parse().map_err(|_| refused)?;
        // What PostgreSQL can compare; everything else was never handed out.
        let fits =
            !id.is_empty() && !id.contains('\0') && jiff::Timestamp::from_millisecond(created_at_ms).is_ok();
        if fits { Ok(Self { created_at_ms, delivery_id: id.to_owned() }) } else { Err(refused) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text_and_nothing_else_is_one() {
        let cursor = Cursor { created_at_ms: 1_790_000_000_000, delivery_id: "a:b/ü".into() };
        let text = cursor.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert_eq!(text.parse(), Ok(cursor));
        for wrong in [
            "",
            "x",
            "MTIz",
            "OmE",
            "!!!!",
            &URL_SAFE_NO_PAD.encode("99999999999999999:a"),
            &URL_SAFE_NO_PAD.encode("1:a\0"),
        ] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }
}
