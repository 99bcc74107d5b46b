//! Values of the binary protocol as the text that the server itself would write. Pure.
//!
//! Only what is wanted often and written cheaply here has a form of its own; the server writes everything else.

use std::io::Write as _;

use super::error::ExportError;

/// From 1970 to 2000, where PostgreSQL counts from.
pub(super) const DAYS: i32 = 10_957;
const DAY_MICROS: i64 = 86_400_000_000;

/// How a point in time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `2026-11-22 03:00:00+00`: as `psql` shows it.
    Sql,
    /// `2026-11-22T03:00:00+00:00`: as PostgreSQL writes it in JSON.
    Iso,
}

/// A value of exactly this length.
pub(super) fn fixed<const N: usize>(value: &[u8], kind: &str) -> Result<[u8; N], ExportError> {
    value.try_into().map_err(|_| ExportError::Encode(format!("a value of the server is no {kind}")))
}

/// A whole number.
pub(super) fn integer(number: i64, out: &mut Vec<u8>) {
    // A vector takes everything.
    let _ = serde_json::to_writer(out, &number);
}

/// A float in the fewest digits that give it back; `NaN` and the infinities are left to the caller.
pub(super) fn double(number: f64, out: &mut Vec<u8>) {
    let begin = out.len();
    let _ = serde_json::to_writer(&mut *out, &number);
    settle(out, begin, number == 0.0 || (1e-4..1e15).contains(&number.abs()));
}

/// The same in single precision.
pub(super) fn float(number: f32, out: &mut Vec<u8>) {
    let begin = out.len();
    let _ = serde_json::to_writer(&mut *out, &number);
    settle(out, begin, number == 0.0 || (1e-4..1e6).contains(&number.abs()));
}

/// Brings the digits from `begin` on into PostgreSQL's notation: no `.0`, and an exponent of two digits or more outside of `plain`.
fn settle(out: &mut Vec<u8>, begin: usize, plain: bool) {
    if plain && !out[begin..].contains(&b'e') {
        if out.ends_with(b".0") {
            out.truncate(out.len() - 2);
        }
        return;
    }
    let written = String::from_utf8_lossy(&out[begin..]).into_owned();
    out.truncate(begin);
    let (sign, rest) = written.strip_prefix('-').map_or(("", written.as_str()), |rest| ("-", rest));
    let (mantissa, exponent) = rest.split_once('e').unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let zeros = digits.len() - digits.trim_start_matches('0').len();
    let digits = digits.trim_matches('0');
    // Where the point stands when it follows the first digit.
    let shift = |length: usize| i32::try_from(length).unwrap_or(i32::MAX);
    let power = exponent.parse::<i32>().unwrap_or(0) + shift(whole.len()) - shift(zeros) - 1;
    out.extend_from_slice(sign.as_bytes());
    let (head, tail) = digits.split_at(digits.len().min(1));
    out.extend_from_slice(head.as_bytes());
    if !tail.is_empty() {
        out.push(b'.');
        out.extend_from_slice(tail.as_bytes());
    }
    let sign = if power < 0 { '-' } else { '+' };
    let _ = write!(out, "e{sign}{:02}", power.unsigned_abs());
}

/// A day, from days since 2000.
pub(super) fn date(days: i32, out: &mut Vec<u8>) {
    if endless(days == i32::MAX, days == i32::MIN, out) {
        return;
    }
    let before_christ = day(i64::from(days), out);
    out.extend_from_slice(if before_christ { b" BC" } else { b"" });
}

/// A time of day, from microseconds.
pub(super) fn time(micros: i64, out: &mut Vec<u8>) {
    let seconds = micros / 1_000_000;
    two(seconds / 3600, out);
    out.push(b':');
    two(seconds / 60 % 60, out);
    out.push(b':');
    two(seconds % 60, out);
    let fraction = micros % 1_000_000;
    if fraction != 0 {
        out.push(b'.');
        for pair in [fraction / 10_000, fraction / 100 % 100, fraction % 100] {
            two(pair, out);
        }
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// A moment, from microseconds since 2000; `utc` where the column has a zone.
pub(super) fn moment(micros: i64, utc: bool, style: Style, out: &mut Vec<u8>) {
    if endless(micros == i64::MAX, micros == i64::MIN, out) {
        return;
    }
    let before_christ = day(micros.div_euclid(DAY_MICROS), out);
    out.push(if style == Style::Iso { b'T' } else { b' ' });
    time(micros.rem_euclid(DAY_MICROS), out);
    out.extend_from_slice(match (utc, style) {
        (false, _) => b"",
        (true, Style::Sql) => b"+00",
        (true, Style::Iso) => b"+00:00",
    });
    out.extend_from_slice(if before_christ { b" BC" } else { b"" });
}

fn endless(above: bool, below: bool, out: &mut Vec<u8>) -> bool {
    match (above, below) {
        (true, _) => out.extend_from_slice(b"infinity"),
        (_, true) => out.extend_from_slice(b"-infinity"),
        _ => return false,
    }
    true
}

/// Writes a day of the Gregorian calendar, extended to all times; true when its year is one before Christ. PostgreSQL knows years
/// from 4713 BC to 5874897, more than the calendar of any library at hand.
fn day(since_2000: i64, out: &mut Vec<u8>) -> bool {
    // Years here begin in March, so that the day that may be missing is their last; 0000-03-01 is 719,468 days before 1970.
    const ERA_DAYS: i64 = 146_097;
    let days = since_2000 + i64::from(DAYS) + 719_468;
    let (era, of_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let shown = if year > 0 { year } else { 1 - year };
    if shown < 10_000 {
        two(shown / 100, out);
        two(shown % 100, out);
    } else {
        integer(shown, out);
    }
    out.push(b'-');
    two(month, out);
    out.push(b'-');
    two(day, out);
    year <= 0
}

/// Two digits of a number below 100.
fn two(number: i64, out: &mut Vec<u8>) {
    let digit = |number: i64| b'0' + u8::try_from(number % 10).unwrap_or(0);
    out.extend_from_slice(&[digit(number / 10), digit(number)]);
}

/// `\x` and two digits a byte.
pub(super) fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\x");
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn floats_are_written_as_the_server_does() {
        for (number, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (-12.5, "-12.5"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (999_999_999_999_999.0, "999999999999999"),
            (1e15, "1e+15"),
            (1.234e20, "1.234e+20"),
            (-1e100, "-1e+100"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(text(|out| double(number, out)), expected, "{number:e}");
        }
        for (number, expected) in [
            (1.5, "1.5"),
            (999_999.0, "999999"),
            (1e6, "1e+06"),
            (1.234_567_8e7, "1.2345678e+07"),
            (1e-5, "1e-05"),
            (f32::MAX, "3.4028235e+38"),
        ] {
            assert_eq!(text(|out| float(number, out)), expected, "{number:e}");
        }
    }

    #[test]
    fn times_are_written_as_the_server_does() {
        for (days, expected) in [
            (0, "2000-01-01"),
            (59, "2000-02-29"),
            (-DAYS, "1970-01-01"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
            (2_921_940, "10000-01-01"),
            (i32::MAX, "infinity"),
            (i32::MIN, "-infinity"),
        ] {
            assert_eq!(text(|out| date(days, out)), expected, "{days}");
        }
        assert_eq!(text(|out| time(DAY_MICROS, out)), "24:00:00");
        assert_eq!(text(|out| time(1_500_000, out)), "00:00:01.5");
        assert_eq!(text(|out| moment(1, true, Style::Sql, out)), "2000-01-01 00:00:00.000001+00");
        assert_eq!(text(|out| moment(-1, true, Style::Iso, out)), "1999-12-31T23:59:59.999999+00:00");
        assert_eq!(text(|out| moment(0, false, Style::Iso, out)), "2000-01-01T00:00:00");
        let before = (-730_120_i64) * DAY_MICROS;
        assert_eq!(text(|out| moment(before, true, Style::Sql, out)), "0001-12-31 00:00:00+00 BC");
        assert_eq!(text(|out| moment(i64::MIN, true, Style::Iso, out)), "-infinity");
    }
}
