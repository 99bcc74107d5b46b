//! From the rows that `COPY` gives to the text that is stored. Pure.

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma separated, with a head line; NULL is an empty field, an empty text is `""`.
    Csv,
    /// One document: `{"data": […], "count": N}`.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// Apache Parquet: typed columns, Snappy, row groups of at most 8 MiB.
    Parquet,
}

impl Format {
    const ALL: [Self; 4] = [Self::Csv, Self::Json, Self::Ndjson, Self::Parquet];

    /// The word in the order, and the object's ending.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Parquet => "parquet",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.word() == word)
    }

    /// Every word, for a message.
    pub(super) fn words() -> String {
        Self::ALL.map(Self::word).join(", ")
    }
}

/// Rows of text on their way. The server sends each in a message of its own.
#[derive(Debug)]
pub(super) struct Shaper {
    /// The name of the list, where the rows become one JSON document.
    list: Option<&'static str>,
    rows: u64,
}

impl Shaper {
    /// Rows that follow each other line by line.
    pub(super) const fn lines() -> Self {
        Self { list: None, rows: 0 }
    }

    /// Rows that become one JSON document, with the list under this name.
    pub(super) const fn document(list: &'static str) -> Self {
        Self { list: Some(list), rows: 0 }
    }

    /// Rows so far.
    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    /// What comes before the first row; `names` of columns make a head line.
    pub(super) fn begin(&self, names: &[&str], out: &mut Vec<u8>) {
        if let Some(list) = self.list {
            out.extend_from_slice(format!("{{\"{list}\":[").as_bytes());
        }
        if !names.is_empty() {
            let fields: Vec<String> = names.iter().map(|name| field(name)).collect();
            out.extend_from_slice(fields.join(",").as_bytes());
            out.push(b'\n');
        }
    }

    /// One row with its line end.
    pub(super) fn row(&mut self, row: &[u8], out: &mut Vec<u8>) {
        if self.list.is_some() {
            if self.rows > 0 {
                out.extend_from_slice(b",\n");
            }
            out.extend_from_slice(row.strip_suffix(b"\n").unwrap_or(row));
        } else {
            out.extend_from_slice(row);
        }
        self.rows += 1;
    }

    /// What comes after the last row.
    pub(super) fn end(&self, out: &mut Vec<u8>) {
        if self.list.is_some() {
            out.extend_from_slice(format!("],\"count\":{}}}\n", self.rows).as_bytes());
        }
    }
}

/// A field of a head line, quoted where it has to be.
fn field(name: &str) -> String {
    if name.contains([',', '"', '\n', '\r']) || name.is_empty() {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(mut shaper: Shaper, names: &[&str], rows: &[&str]) -> (String, u64) {
        let mut out = Vec::new();
        shaper.begin(names, &mut out);
        for row in rows {
            shaper.row(row.as_bytes(), &mut out);
        }
        shaper.end(&mut out);
        (String::from_utf8(out).expect("text"), shaper.rows())
    }

    #[test]
    fn rows_are_counted_and_joined() {
        let csv = shaped(Shaper::lines(), &["id", "a \"b\", c"], &["1,\"a\nb\"\n", "2,\n"]);
        assert_eq!(csv, ("id,\"a \"\"b\"\", c\"\n1,\"a\nb\"\n2,\n".to_owned(), 2));
        assert_eq!(shaped(Shaper::lines(), &["id"], &[]), ("id\n".to_owned(), 0));
        let rows = ["{\"a\":\"x\\ny\"}\n", "{\"a\":2}\n"];
        assert_eq!(shaped(Shaper::lines(), &[], &rows), (rows.concat(), 2));
        let document = "{\"data\":[{\"a\":\"x\\ny\"},\n{\"a\":2}],\"count\":2}\n";
        assert_eq!(shaped(Shaper::document("data"), &[], &rows), (document.to_owned(), 2));
        assert_eq!(shaped(Shaper::document("data"), &[], &[]), ("{\"data\":[],\"count\":0}\n".to_owned(), 0));
    }

    #[test]
    fn every_format_has_a_word() {
        for format in Format::ALL {
            assert_eq!(Format::of(format.word()), Some(format));
        }
        assert_eq!((Format::of("xml"), Format::words().as_str()), (None, "csv, json, ndjson, parquet"));
    }
}
