//! The formats of exports.

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
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Csv, Self::Json, Self::Ndjson, Self::Parquet];

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
    #[must_use]
    pub fn words() -> String {
        Self::ALL.map(Self::word).join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_word() {
        for format in Format::ALL {
            assert_eq!(Format::of(format.word()), Some(format));
        }
        assert_eq!((Format::of("xml"), Format::words().as_str()), (None, "csv, json, ndjson, parquet"));
    }
}
