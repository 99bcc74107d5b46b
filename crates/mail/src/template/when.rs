use jiff::Timestamp;
use jiff::tz::TimeZone;

const ENGLISH: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const GERMAN: [&str; 12] = [
    "Januar",
    "Februar",
    "März",
    "April",
    "Mai",
    "Juni",
    "Juli",
    "August",
    "September",
    "Oktober",
    "November",
    "Dezember",
];

/// A point in time as a reader of `language` writes it, always in UTC and saying so; ISO 8601 in other languages.
pub(super) fn when(timestamp: Timestamp, language: &str) -> String {
    let time = timestamp.to_zoned(TimeZone::UTC);
    let month = usize::try_from(time.month() - 1).unwrap_or(0) % 12;
    let (day, year, clock) = (time.day(), time.year(), format!("{:02}:{:02}", time.hour(), time.minute()));
    match language {
        "en" => format!("{day} {} {year}, {clock} UTC", ENGLISH[month]),
        "de" => format!("{day}. {} {year}, {clock} Uhr UTC", GERMAN[month]),
        _ => format!("{year:04}-{:02}-{day:02} {clock} UTC", time.month()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_its_reader_writes_it() {
        let time: Timestamp = "2026-03-01T14:05:09+02:00".parse().expect("a time");
        assert_eq!(when(time, "en"), "1 March 2026, 12:05 UTC");
        assert_eq!(when(time, "de"), "1. März 2026, 12:05 Uhr UTC");
        assert_eq!(when(time, "fr"), "2026-03-01 12:05 UTC");
    }
}
