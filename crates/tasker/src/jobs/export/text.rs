//! Rows as text: CSV, one JSON object a line, one JSON document. What the server's own `COPY … CSV` and `row_to_json` write, made
//! here because the server takes two to four times as long. Only a float that has two shortest forms may have the other one. Pure.

use std::mem;

use uuid::Uuid;

use super::columns::{Column, Kind};
use super::error::ExportError;
use super::values::{Style, date, double, fixed, float, hex, integer, moment, time};
use super::wire::Rows;

/// How the rows lie in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Comma separated, with a head line; NULL is an empty field, an empty text is `""`.
    Csv,
    /// One JSON object a line.
    Lines,
    /// One JSON document, with the list under this name.
    Document(&'static str),
}

/// Rows on their way into text.
#[derive(Debug)]
pub(super) struct Text {
    layout: Layout,
    columns: Vec<Cell>,
    rows: u64,
    out: Vec<u8>,
}

/// A column of every row.
#[derive(Debug)]
struct Cell {
    name: String,
    kind: Kind,
    /// What stands before its value, whatever that is.
    before: Vec<u8>,
}

impl Text {
    /// A text that begins.
    pub(super) fn new(layout: Layout, columns: &[Column]) -> Self {
        let mut out = Vec::new();
        match layout {
            Layout::Csv => {
                for (at, column) in columns.iter().enumerate() {
                    separate(at, &mut out);
                    csv_text(column.name.as_bytes(), false, &mut out);
                }
                out.push(b'\n');
            }
            Layout::Lines => {}
            Layout::Document(list) => out.extend_from_slice(format!("{{\"{list}\":[").as_bytes()),
        }
        let cell = |(at, column): (usize, &Column)| {
            let mut before = Vec::new();
            if layout == Layout::Csv {
                separate(at, &mut before);
            } else {
                before.push(if at == 0 { b'{' } else { b',' });
                json_escaped(&column.name, &mut before);
                before.push(b':');
            }
            Cell { name: column.name.clone(), kind: column.kind, before }
        };
        Self { layout, columns: columns.iter().enumerate().map(cell).collect(), rows: 0, out }
    }

    /// What has been written, once it is so much.
    pub(super) fn filled(&mut self, least: usize) -> Option<Vec<u8>> {
        // Rows are short beside it: the next lot will hardly have to grow.
        let next = least + least / 4;
        (self.out.len() >= least).then(|| mem::replace(&mut self.out, Vec::with_capacity(next)))
    }

    /// The rest, with what comes after the last row.
    pub(super) fn end(mut self) -> Vec<u8> {
        if let Layout::Document(_) = self.layout {
            self.out.extend_from_slice(format!("],\"count\":{}}}\n", self.rows).as_bytes());
        }
        self.out
    }
}

impl Rows for Text {
    fn field(&mut self, at: usize, value: Option<&[u8]>) -> Result<(), ExportError> {
        let Some(cell) = self.columns.get(at) else {
            return Err(ExportError::Encode(format!("a row has more than {at} fields")));
        };
        let out = &mut self.out;
        if at == 0 && self.rows > 0 && matches!(self.layout, Layout::Document(_)) {
            out.extend_from_slice(b",\n");
        }
        out.extend_from_slice(&cell.before);
        let written = match (self.layout, value) {
            (Layout::Csv, None) => Ok(()),
            (Layout::Csv, Some(value)) => csv_value(cell.kind, value, self.columns.len() == 1, out),
            (_, None) => {
                out.extend_from_slice(b"null");
                Ok(())
            }
            (_, Some(value)) => json_value(cell.kind, value, out),
        };
        written.map_err(|error| in_column(&cell.name, self.rows, error))
    }

    fn end_row(&mut self) {
        match self.layout {
            Layout::Csv => self.out.push(b'\n'),
            Layout::Lines => self.out.extend_from_slice(b"}\n"),
            Layout::Document(_) => self.out.push(b'}'),
        }
        self.rows += 1;
    }
}

fn in_column(name: &str, rows: u64, error: ExportError) -> ExportError {
    match error {
        ExportError::Encode(problem) => {
            ExportError::Encode(format!("row {}, column {name:?}: {problem}", rows + 1))
        }
        other => other,
    }
}

fn separate(at: usize, out: &mut Vec<u8>) {
    if at > 0 {
        out.push(b',');
    }
}

/// A value that has one text wherever it stands, without a character that would have to be quoted; false for any other.
fn plain(kind: Kind, value: &[u8], style: Style, out: &mut Vec<u8>) -> Result<bool, ExportError> {
    match kind {
        Kind::Int16 => integer(i64::from(i16::from_be_bytes(fixed(value, "smallint")?)), out),
        Kind::Int32 => integer(i64::from(i32::from_be_bytes(fixed(value, "integer")?)), out),
        Kind::Int64 => integer(i64::from_be_bytes(fixed(value, "bigint")?), out),
        Kind::Uuid => {
            let uuid = Uuid::from_bytes(fixed(value, "uuid")?);
            out.extend_from_slice(uuid.hyphenated().encode_lower(&mut [0; 36]).as_bytes());
        }
        Kind::Date => date(i32::from_be_bytes(fixed(value, "date")?), out),
        Kind::Time => time(i64::from_be_bytes(fixed(value, "time")?), out),
        Kind::Timestamp { utc } => {
            moment(i64::from_be_bytes(fixed(value, "timestamp")?), utc, style, out);
        }
        Kind::Bytes => hex(value, out),
        _ => return Ok(false),
    }
    Ok(true)
}

/// A float, whose bounds and gaps are words.
enum Float {
    Single(f32),
    Double(f64),
}

impl Float {
    fn of(kind: Kind, value: &[u8]) -> Result<Option<Self>, ExportError> {
        Ok(match kind {
            Kind::Float => Some(Self::Single(f32::from_be_bytes(fixed(value, "real")?))),
            Kind::Double => Some(Self::Double(f64::from_be_bytes(fixed(value, "double precision")?))),
            _ => None,
        })
    }

    fn word(&self) -> Option<&'static str> {
        let wide = match *self {
            Self::Single(number) => f64::from(number),
            Self::Double(number) => number,
        };
        match wide {
            _ if wide.is_nan() => Some("NaN"),
            f64::INFINITY => Some("Infinity"),
            f64::NEG_INFINITY => Some("-Infinity"),
            _ => None,
        }
    }

    fn digits(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Single(number) => float(number, out),
            Self::Double(number) => double(number, out),
        }
    }
}

/// One value in JSON.
fn json_value(kind: Kind, value: &[u8], out: &mut Vec<u8>) -> Result<(), ExportError> {
    if let Some(float) = Float::of(kind, value)? {
        match float.word() {
            Some(word) => quoted(word.as_bytes(), out),
            None => float.digits(out),
        }
        return Ok(());
    }
    match kind {
        Kind::Int16 | Kind::Int32 | Kind::Int64 => plain(kind, value, Style::Iso, out).map(drop),
        Kind::Bool => {
            out.extend_from_slice(if is_true(value) { b"true" } else { b"false" });
            Ok(())
        }
        Kind::Number => {
            // NaN and the infinities begin with a letter, after a sign where they have one.
            if value.last().is_some_and(u8::is_ascii_digit) {
                out.extend_from_slice(value);
            } else {
                quoted(value, out);
            }
            Ok(())
        }
        Kind::Text => json_text(value, out),
        Kind::Json => {
            json_document(value, out);
            Ok(())
        }
        Kind::Jsonb => {
            json_document(versioned(value)?, out);
            Ok(())
        }
        Kind::Decimal { .. } => Err(unexpected(kind)),
        _ => {
            out.push(b'"');
            if kind == Kind::Bytes {
                // Its first character is one that JSON escapes.
                out.push(b'\\');
            }
            plain(kind, value, Style::Iso, out)?;
            out.push(b'"');
            Ok(())
        }
    }
}

/// One value in CSV. `alone`: it is all of its row.
fn csv_value(kind: Kind, value: &[u8], alone: bool, out: &mut Vec<u8>) -> Result<(), ExportError> {
    if let Some(float) = Float::of(kind, value)? {
        match float.word() {
            Some(word) => out.extend_from_slice(word.as_bytes()),
            None => float.digits(out),
        }
        return Ok(());
    }
    match kind {
        Kind::Bool => out.push(if is_true(value) { b't' } else { b'f' }),
        Kind::Number => out.extend_from_slice(value),
        Kind::Text | Kind::Json => csv_text(value, alone, out),
        Kind::Jsonb => csv_text(versioned(value)?, alone, out),
        _ if plain(kind, value, Style::Sql, out)? => {}
        _ => return Err(unexpected(kind)),
    }
    Ok(())
}

fn unexpected(kind: Kind) -> ExportError {
    ExportError::Encode(format!("a text has no {kind:?}"))
}

fn is_true(value: &[u8]) -> bool {
    value.first().is_some_and(|byte| *byte != 0)
}

/// The text of a `jsonb`, which the server sends behind the number of its form.
pub(super) fn versioned(value: &[u8]) -> Result<&[u8], ExportError> {
    let text = value.strip_prefix(&[1]);
    text.ok_or_else(|| ExportError::Encode("a jsonb of the server is of an unknown form".to_owned()))
}

fn quoted(word: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(word);
    out.push(b'"');
}

/// A text in JSON. Most have nothing to escape, which is found out many bytes at a time.
fn json_text(value: &[u8], out: &mut Vec<u8>) -> Result<(), ExportError> {
    let special = |byte: &u8| (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\');
    let text = std::str::from_utf8(value).map_err(|error| {
        let at = error.valid_up_to() + 1;
        ExportError::Encode(format!("its byte {at} is not UTF-8, which JSON has to be"))
    })?;
    if value.iter().fold(false, |found, byte| found | special(byte)) {
        json_escaped(text, out);
    } else {
        quoted(value, out);
    }
    Ok(())
}

fn json_escaped(text: &str, out: &mut Vec<u8>) {
    // A vector takes everything.
    let _ = serde_json::to_writer(out, text);
}

/// A document as it was written, on one line: a line break in it can only stand between its parts.
fn json_document(value: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(value);
    for byte in &mut out[begin..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// A text in CSV, quoted where it has to be.
fn csv_text(value: &[u8], alone: bool, out: &mut Vec<u8>) {
    let special = |byte: &u8| (*byte == b',') | (*byte == b'"') | (*byte == b'\n') | (*byte == b'\r');
    // `\.` by itself on a line is the end of all rows to many a reader.
    let is_end = alone && value == b"\\.";
    if !value.is_empty() && !is_end && !value.iter().fold(false, |found, byte| found | special(byte)) {
        out.extend_from_slice(value);
        return;
    }
    out.push(b'"');
    for byte in value {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::super::wire::{SIGNATURE, Wire};
    use super::*;

    fn column(name: &str, kind: Kind) -> Column {
        Column { name: name.to_owned(), expression: format!("t.{name}"), kind }
    }

    /// Rows of texts, as the server would send them.
    fn shaped(layout: Layout, columns: &[Column], rows: &[&[Option<&[u8]>]]) -> String {
        let mut message = [SIGNATURE, &[0; 8]].concat();
        for row in rows {
            message.extend_from_slice(&i16::try_from(row.len()).expect("few").to_be_bytes());
            for value in *row {
                let length = value.map_or(-1, |value| i32::try_from(value.len()).expect("short"));
                message.extend_from_slice(&length.to_be_bytes());
                message.extend_from_slice(value.unwrap_or_default());
            }
        }
        message.extend_from_slice(&[0xff, 0xff]);
        let (mut wire, mut text) = (Wire::new(columns.len()), Text::new(layout, columns));
        wire.take(&message, &mut text).expect("rows");
        assert_eq!(wire.rows(), rows.len() as u64);
        String::from_utf8(text.end()).expect("text")
    }

    #[test]
    fn csv_quotes_what_a_reader_would_take_for_something_else() {
        let two = [column("id", Kind::Int32), column("a \"b\", c", Kind::Text)];
        let one = 1_i32.to_be_bytes();
        let rows: [&[Option<&[u8]>]; 4] = [
            &[Some(&one), Some(b"a\n\"b\"")],
            &[None, Some(b"")],
            &[Some(&one), None],
            &[Some(&one), Some(b" \\.")],
        ];
        let expected = "id,\"a \"\"b\"\", c\"\n1,\"a\n\"\"b\"\"\"\n,\"\"\n1,\n1, \\.\n";
        assert_eq!(shaped(Layout::Csv, &two, &rows), expected);
        let alone = [column("v", Kind::Text)];
        assert_eq!(shaped(Layout::Csv, &alone, &[&[Some(&b"\\."[..])], &[None]]), "v\n\"\\.\"\n\n");
        assert_eq!(shaped(Layout::Csv, &alone, &[]), "v\n");
    }

    #[test]
    fn json_is_one_object_a_line_or_one_document() {
        let two = [column("n", Kind::Number), column("x\ny", Kind::Text)];
        let rows: [&[Option<&[u8]>]; 2] =
            [&[Some(b"12.50"), Some("ä\u{7f}\u{1}\\".as_bytes())], &[Some(b"-Infinity"), None]];
        let lines = "{\"n\":12.50,\"x\\ny\":\"ä\u{7f}\\u0001\\\\\"}\n{\"n\":\"-Infinity\",\"x\\ny\":null}\n";
        assert_eq!(shaped(Layout::Lines, &two, &rows), lines);
        let document = format!("{{\"data\":[{}],\"count\":2}}\n", lines.trim_end().replace("}\n", "},\n"));
        assert_eq!(shaped(Layout::Document("data"), &two, &rows), document);
        assert_eq!(shaped(Layout::Document("data"), &two, &[]), "{\"data\":[],\"count\":0}\n");
        let json = [column("j", Kind::Json)];
        assert_eq!(shaped(Layout::Lines, &json, &[&[Some(&b"{\n \"a\":1}"[..])]]), "{\"j\":{  \"a\":1}}\n");
    }

    #[test]
    fn what_cannot_be_written_is_named_by_row_and_column() {
        let name = [column("note", Kind::Text)];
        let mut text = Text::new(Layout::Lines, &name);
        let error = text.field(0, Some(b"a\xff")).expect_err("no UTF-8").to_string();
        assert!(error.contains("row 1, column \"note\"") && error.contains("byte 2"), "{error}");
        let mut number = Text::new(Layout::Csv, &[column("n", Kind::Int64)]);
        assert!(number.field(0, Some(&[1, 2])).expect_err("too short").to_string().contains("bigint"));
    }
}
