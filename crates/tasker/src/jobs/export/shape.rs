//! From what `COPY` gives to what is stored: counts rows, and makes lines of JSON one document. Pure.

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma separated, with a head line; NULL is an empty field, an empty text is `""`.
    Csv,
    /// One document: `{"data": […], "count": N}`.
    Json,
    /// One JSON object a line.
    Ndjson,
}

impl Format {
    /// The word in the order, and the object's ending.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        [Self::Csv, Self::Json, Self::Ndjson].into_iter().find(|format| format.word() == word)
    }
}

/// Rows on their way.
#[derive(Debug)]
pub(super) struct Shaper {
    format: Format,
    /// The name of the list in a JSON document.
    list: &'static str,
    ends: u64,
    quoted: bool,
    separator_due: bool,
    begun: bool,
}

impl Shaper {
    pub(super) const fn new(format: Format, list: &'static str) -> Self {
        Self { format, list, ends: 0, quoted: false, separator_due: false, begun: false }
    }

    /// Rows so far, without the head line.
    pub(super) const fn rows(&self) -> u64 {
        match self.format {
            Format::Csv => self.ends.saturating_sub(1),
            Format::Json | Format::Ndjson => self.ends,
        }
    }

    /// The next bytes, cut anywhere.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        self.begin(&mut out);
        for &byte in bytes {
            // A line break inside quotes is data. JSON has none that is not escaped.
            if byte == b'"' && self.format == Format::Csv {
                self.quoted = !self.quoted;
            }
            let end = byte == b'\n' && !self.quoted;
            if end {
                self.ends += 1;
            }
            if self.format == Format::Json {
                if end {
                    self.separator_due = true;
                    continue;
                }
                if std::mem::take(&mut self.separator_due) {
                    out.extend_from_slice(b",\n");
                }
            }
            out.push(byte);
        }
        out
    }

    /// What comes after the last row.
    pub(super) fn end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.begin(&mut out);
        if self.format == Format::Json {
            out.extend_from_slice(format!("],\"count\":{}}}\n", self.rows()).as_bytes());
        }
        out
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.format == Format::Json && !self.begun {
            out.extend_from_slice(format!("{{\"{}\":[", self.list).as_bytes());
        }
        self.begun = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(format: Format, text: &str, step: usize) -> (String, u64) {
        let mut shaper = Shaper::new(format, "data");
        let mut out = Vec::new();
        for chunk in text.as_bytes().chunks(step) {
            out.extend(shaper.push(chunk));
        }
        out.extend(shaper.end());
        (String::from_utf8(out).expect("text"), shaper.rows())
    }

    #[test]
    fn rows_are_counted_and_joined_wherever_the_stream_is_cut() {
        for step in [1, 2, 3, 7, 1000] {
            let csv = "id,note\n1,\"a\nb \"\"c\"\"\n\"\n2,\n";
            assert_eq!(shaped(Format::Csv, csv, step), (csv.to_owned(), 2));
            assert_eq!(shaped(Format::Csv, "id\n", step).1, 0);
            let lines = "{\"a\":\"x\\ny\"}\n{\"a\":2}\n";
            assert_eq!(shaped(Format::Ndjson, lines, step), (lines.to_owned(), 2));
            let document = "{\"data\":[{\"a\":\"x\\ny\"},\n{\"a\":2}],\"count\":2}\n";
            assert_eq!(shaped(Format::Json, lines, step), (document.to_owned(), 2));
        }
        assert_eq!(shaped(Format::Json, "", 1), ("{\"data\":[],\"count\":0}\n".to_owned(), 0));
    }
}
