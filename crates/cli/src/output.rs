use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde::ser::SerializeMap as _;

use crate::failure::Failure;

/// Where a command's data goes: stdout, as a table or text for people, or as one JSON document for scripts. Nothing is
/// coloured, so NO_COLOR and output that is no terminal need no case of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    json: bool,
}

/// One column of a table: its heading, and how a row fills it.
pub struct Column<'c, T> {
    heading: &'c str,
    cell: Box<dyn Fn(&T) -> String + 'c>,
}

impl<T> std::fmt::Debug for Column<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Column").field("heading", &self.heading).finish_non_exhaustive()
    }
}

impl<'c, T> Column<'c, T> {
    /// A column under `heading`. Text from outside is safe in it: line breaks and control characters are shown, not obeyed.
    pub fn new(heading: &'c str, cell: impl Fn(&T) -> String + 'c) -> Self {
        Self { heading, cell: Box::new(cell) }
    }
}

impl Output {
    /// Data as JSON when `json`, else for people.
    #[must_use]
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// True when data is a JSON document.
    #[must_use]
    pub const fn is_json(self) -> bool {
        self.json
    }

    /// One thing: `document` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// When stdout cannot be written, except when its reader has gone, which ends a command well: `jobs list | head`.
    pub fn one<T: Serialize>(self, document: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json { self.document(document) } else { print(&text(document)) }
    }

    /// A list: `{"<plural>":[…],"next":cursor|null}`, or a table with a line that says how to go on.
    ///
    /// # Errors
    /// As [`Output::one`].
    pub fn list<T: Serialize>(
        self,
        plural: &str,
        rows: &[T],
        next: Option<&str>,
        columns: &[Column<'_, T>],
    ) -> Result<(), Failure> {
        if !self.json {
            let more = next.map(|next| format!("more follow: --cursor {next}\n")).unwrap_or_default();
            let table = if rows.is_empty() { format!("no {plural}\n") } else { table(rows, columns) };
            print(&table)?;
            // Beside the data, so that a pipe gets rows alone.
            let _ = io::stderr().lock().write_all(more.as_bytes());
            return Ok(());
        }
        self.document(&Page { plural, rows, next })
    }

    /// A table made of `rows`, as text: for commands that show several under headings of their own.
    pub fn table<T>(self, rows: &[T], columns: &[Column<'_, T>]) -> String {
        table(rows, columns)
    }

    /// Text that is the data itself in either mode, such as a generated file.
    ///
    /// # Errors
    /// As [`Output::one`].
    pub fn text(self, text: &str) -> Result<(), Failure> {
        print(text)
    }

    fn document<T: Serialize>(self, document: &T) -> Result<(), Failure> {
        print(&format!("{}\n", to_json(document)?))
    }
}

/// `{"<plural>":[…],"next":…}`
struct Page<'p, T> {
    plural: &'p str,
    rows: &'p [T],
    next: Option<&'p str>,
}

impl<T: Serialize> Serialize for Page<'_, T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_map(Some(2))?;
        document.serialize_entry(self.plural, self.rows)?;
        document.serialize_entry("next", &self.next)?;
        document.end()
    }
}

/// Written as it is, not by way of [`serde_json::Value`]: a payload or a result is its sender's JSON, which may be nested deeper
/// or hold greater numbers than a value of ours, and must be shown as it was sent.
fn to_json<T: Serialize + ?Sized>(data: &T) -> Result<String, Failure> {
    serde_json::to_string(data).map_err(|error| {
        Failure::failed(
            "output_failed",
            format!("the answer cannot be written as JSON: {error}"),
            "Report this.",
        )
    })
}

fn table<T>(rows: &[T], columns: &[Column<'_, T>]) -> String {
    let mut table = Table::new();
    // One line a row whatever its length: rows are for grep and cut.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.heading));
    for row in rows {
        table.add_row(columns.iter().map(|column| shown(&(column.cell)(row)).into_owned()));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim());
        text.push('\n');
    }
    text
}

/// A cell: control characters escaped, since a job's error or a mail's subject could move the cursor; empty as a dash.
fn shown(cell: &str) -> Cow<'_, str> {
    if cell.is_empty() {
        return "-".into();
    }
    if cell.chars().any(char::is_control) {
        return cell
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect();
    }
    cell.into()
}

fn print(text: &str) -> Result<(), Failure> {
    write(&mut io::stdout().lock(), text)
}

fn write(to: &mut impl Write, text: &str) -> Result<(), Failure> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(
            "output_failed",
            format!("stdout cannot be written: {error}"),
            "Check where stdout goes: is the disk full?",
        )),
        _ => Ok(()),
    }
}

/// A duration for people, its two largest units: `3d 4h`, `5m 2s`, `12s`, `240ms`.
#[must_use]
pub fn human_duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{}ms", duration.as_millis());
    }
    let mut rest = duration.as_secs();
    let mut parts = Vec::new();
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        let count = rest / size;
        rest %= size;
        // A gap ends it: `1d 0h 5m` says no more than `1d`.
        if count == 0 && !parts.is_empty() {
            break;
        }
        if count > 0 {
            parts.push(format!("{count}{unit}"));
        }
    }
    parts.truncate(2);
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed(io::ErrorKind);
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() {
        assert_eq!(write(&mut Closed(io::ErrorKind::BrokenPipe), "x"), Ok(()));
        let failure = write(&mut Closed(io::ErrorKind::StorageFull), "x").unwrap_err();
        assert_eq!((failure.code, failure.exit.code()), ("output_failed", 1));
    }

    #[test]
    fn json_from_elsewhere_is_shown_as_it_was_sent() {
        #[derive(Serialize)]
        struct Row {
            payload: Box<serde_json::value::RawValue>,
        }
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for sent in [deep.as_str(), "1e999", "12345678901234567890123", r#"{"b":1.10,"a":1,"a":2}"#] {
            let rows = [Row { payload: serde_json::from_str(sent).unwrap() }];
            let text = to_json(&Page { plural: "jobs", rows: &rows, next: None }).unwrap();
            assert_eq!(text, format!(r#"{{"jobs":[{{"payload":{sent}}}],"next":null}}"#));
        }
    }

    #[test]
    fn rows_stay_one_line_whatever_they_hold() {
        let rows = ["plain", "", "two\nlines \u{1b}[31mred", "é"];
        let columns = [Column::new("NAME", |row: &&str| (*row).to_owned()), Column::new("N", |_| "1".into())];
        let text = table(&rows, &columns);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("two\\nlines"), "{text}");
        assert!(text.lines().nth(2).unwrap().starts_with('-'), "{text}");
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    }

    #[test]
    fn durations_show_their_two_largest_units() {
        for (ms, text) in [
            (0, "0ms"),
            (240, "240ms"),
            (12_900, "12s"),
            (302_000, "5m 2s"),
            (3_600_000, "1h"),
            (86_460_000, "1d"),
            (274_200_000, "3d 4h"),
        ] {
            assert_eq!(human_duration(Duration::from_millis(ms)), text);
        }
    }
}
