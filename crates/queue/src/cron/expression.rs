//! What may stand in the five fields. croner reads them; this names the field, the place and the remedy, and refuses
//! what croner lets pass (a month's name in the minute, an empty list item, a step longer than its field).

use std::fmt;

/// The longest expression that is read.
const LENGTH_MAX: usize = 256;

/// One of the five fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// 0-59.
    Minute,
    /// 0-23.
    Hour,
    /// 1-31.
    DayOfMonth,
    /// 1-12.
    Month,
    /// 0-7, 0 and 7 are Sunday.
    DayOfWeek,
}

impl Field {
    const ALL: [Self; 5] = [Self::Minute, Self::Hour, Self::DayOfMonth, Self::Month, Self::DayOfWeek];
    const MONTHS: [&'static str; 12] =
        ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
    const DAYS: [&'static str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

    const fn bounds(self) -> (u16, u16) {
        match self {
            Self::Minute => (0, 59),
            Self::Hour => (0, 23),
            Self::DayOfMonth => (1, 31),
            Self::Month => (1, 12),
            Self::DayOfWeek => (0, 7),
        }
    }

    fn names(self) -> (&'static [&'static str], u16) {
        match self {
            Self::Month => (&Self::MONTHS, 1),
            Self::DayOfWeek => (&Self::DAYS, 0),
            _ => (&[], 0),
        }
    }

    const fn allowed(self) -> &'static str {
        match self {
            Self::Minute => "0-59",
            Self::Hour => "0-23",
            Self::DayOfMonth => "1-31, `L`, `LW` or a day with `W`",
            Self::Month => "1-12 or JAN-DEC",
            Self::DayOfWeek => "0-7 (0 and 7 are Sunday) or SUN-SAT",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of month",
            Self::Month => "month",
            Self::DayOfWeek => "day of week",
        })
    }
}

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Nothing is there.
    #[error(
        "cron expression is empty: write five fields, minute hour day-of-month month day-of-week, such as `30 2 * * *`"
    )]
    Empty,
    /// Longer than any real expression.
    #[error("cron expression has {length} characters: at most 256 are read")]
    TooLong {
        /// Bytes given.
        length: usize,
    },
    /// Not five fields.
    #[error("cron expression {expression:?} has {found} fields: {}", count_remedy(*.found))]
    FieldCount {
        /// What was given.
        expression: String,
        /// Fields found.
        found: usize,
    },
    /// A word that stands for no time of day.
    #[error(
        "cron expression {expression:?} is not known: write five fields, or one of @hourly, @daily, @weekly, @monthly, @yearly"
    )]
    Nickname {
        /// What was given.
        expression: String,
    },
    /// A zone inside the expression.
    #[error("cron expression {expression:?} names a zone: give the zone in its own field (`zone`, `--zone`)")]
    ZoneInside {
        /// What was given.
        expression: String,
    },
    /// One field is wrong.
    #[error("cron expression {expression:?}: {field} field {item:?} {problem}")]
    Field {
        /// What was given.
        expression: String,
        /// The field.
        field: Field,
        /// The item of the field's list.
        item: String,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// The parser refused what passed the checks here.
    #[error("cron expression {expression:?} cannot be read: {reason}")]
    Unreadable {
        /// What was given.
        expression: String,
        /// The parser's words.
        reason: String,
    },
    /// No date matches.
    #[error(
        "cron expression {expression:?} is never due: its month has no such day; correct the day of month or the month field"
    )]
    NeverDue {
        /// What was given.
        expression: String,
    },
}

const fn count_remedy(found: usize) -> &'static str {
    if found < 5 {
        "write five, minute hour day-of-month month day-of-week; `*` stands for every value"
    } else {
        "seconds and years are not supported; write five, minute hour day-of-month month day-of-week"
    }
}

/// How an expression behaves when the clock changes; the rules stand at [`super::Calendar`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    FixedTimes,
    Interval,
}

/// An expression that passed the checks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// As given, trimmed.
    pub(crate) given: String,
    /// Five fields in upper case.
    pub(crate) fields: String,
    pub(crate) nature: Nature,
}

pub(crate) fn check(given: &str) -> Result<Checked, ExpressionError> {
    let given = given.trim();
    if given.is_empty() {
        return Err(ExpressionError::Empty);
    }
    if given.len() > LENGTH_MAX {
        return Err(ExpressionError::TooLong { length: given.len() });
    }
    let upper = given.to_ascii_uppercase();
    let text = if upper.starts_with('@') { nickname(given, &upper)? } else { &upper };
    if text.contains("TZ=") {
        return Err(ExpressionError::ZoneInside { expression: given.to_owned() });
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != Field::ALL.len() {
        return Err(ExpressionError::FieldCount { expression: given.to_owned(), found: fields.len() });
    }
    for (field, text) in Field::ALL.into_iter().zip(&fields) {
        check_field(field, text).map_err(|(item, problem)| ExpressionError::Field {
            expression: given.to_owned(),
            field,
            item,
            problem,
        })?;
    }
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b',');
    let nature = if plain(fields[0]) && plain(fields[1]) { Nature::FixedTimes } else { Nature::Interval };
    Ok(Checked { given: given.to_owned(), fields: fields.join(" "), nature })
}

fn nickname(given: &str, upper: &str) -> Result<&'static str, ExpressionError> {
    Ok(match upper {
        "@HOURLY" => "0 * * * *",
        "@DAILY" | "@MIDNIGHT" => "0 0 * * *",
        "@WEEKLY" => "0 0 * * 0",
        "@MONTHLY" => "0 0 1 * *",
        "@YEARLY" | "@ANNUALLY" => "0 0 1 1 *",
        _ => return Err(ExpressionError::Nickname { expression: given.to_owned() }),
    })
}

/// The offending item with its problem.
type Problem = (String, String);

fn check_field(field: Field, text: &str) -> Result<(), Problem> {
    let list = match field {
        Field::DayOfWeek => text.strip_prefix('+').unwrap_or(text),
        _ => text,
    };
    if list == "?" && matches!(field, Field::DayOfMonth | Field::DayOfWeek) {
        return Ok(());
    }
    list.split(',').try_for_each(|item| {
        check_item(field, item).map_err(|problem| {
            let shown = if item.is_empty() { text } else { item };
            (shown.to_owned(), problem)
        })
    })
}

fn check_item(field: Field, item: &str) -> Result<(), String> {
    if item.is_empty() {
        return Err("holds an empty list item: remove the extra comma".to_owned());
    }
    if let Some((base, step)) = item.split_once('/') {
        return check_step(field, base, step);
    }
    if item == "*" || check_day_modifier(field, item)? {
        return Ok(());
    }
    check_span(field, item).map(drop)
}

fn check_step(field: Field, base: &str, step: &str) -> Result<(), String> {
    let (low, high) = field.bounds();
    if base.is_empty() {
        return Err(format!("has a step without a start: write `*/{step}`"));
    }
    if base != "*" && !base.contains('-') {
        return Err(format!("has a step after a single value: write `{base}-{high}/{step}`"));
    }
    let (from, to) = if base == "*" { (low, high) } else { check_span(field, base)? };
    match step.parse::<u16>() {
        Ok(0) => Err("has a step of 0: the smallest step is 1".to_owned()),
        Ok(step) if step <= (to - from).max(1) => Ok(()),
        Ok(_) => Err(format!(
            "has a step longer than {from}-{to}, so it would match {from} alone: write {from}, or use a larger field"
        )),
        Err(_) => Err("has a step that is no number".to_owned()),
    }
}

/// Whether `item` is one of the day modifiers (`L`, `LW`, `15W`, `5L`, `5#2`); an error when it is one that is wrong.
fn check_day_modifier(field: Field, item: &str) -> Result<bool, String> {
    match field {
        Field::DayOfMonth if item == "L" || item == "LW" => Ok(true),
        Field::DayOfMonth => match item.strip_suffix('W') {
            Some(day) => check_value(field, day).map(|_| true),
            None => Ok(false),
        },
        Field::DayOfWeek if item == "L" => Err("needs its day: write `5L` for the last Friday".to_owned()),
        Field::DayOfWeek => {
            if let Some((day, nth)) = item.split_once('#') {
                check_value(field, day)?;
                return match nth.parse::<u8>() {
                    Ok(1..=5) => Ok(true),
                    _ => Err("asks for a week that no month has: write `#1` to `#5`".to_owned()),
                };
            }
            match item.strip_suffix('L') {
                Some(day) => check_value(field, day).map(|_| true),
                None => Ok(false),
            }
        }
        _ => Ok(false),
    }
}

fn check_span(field: Field, item: &str) -> Result<(u16, u16), String> {
    let Some((from, to)) = item.split_once('-') else {
        return check_value(field, item).map(|value| (value, value));
    };
    let start = check_value(field, from)?;
    let end = match check_value(field, to)? {
        0 if to == "SUN" => 7,
        end => end,
    };
    if start > end {
        let (low, high) = field.bounds();
        return Err(format!("runs backwards: write two ranges, `{from}-{high},{low}-{to}`"));
    }
    Ok((start, end))
}

fn check_value(field: Field, text: &str) -> Result<u16, String> {
    let (low, high) = field.bounds();
    let (names, first) = field.names();
    if let Some(at) = names.iter().position(|name| *name == text) {
        return Ok(first + u16::try_from(at).unwrap_or(u16::MAX));
    }
    let digits = !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(value) if digits && (low..=high).contains(&value) => Ok(value),
        Ok(_) if digits => Err(format!("is out of bounds: it takes {}", field.allowed())),
        _ => Err(format!("is not a value: it takes {}", field.allowed())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_the_field_and_the_remedy() {
        for (given, field, remedy) in [
            ("60 * * * *", "minute", "0-59"),
            ("* 24 * * *", "hour", "0-23"),
            ("* * 0 * *", "day of month", "1-31"),
            ("* * 32 * *", "day of month", "1-31"),
            ("* * * 13 *", "month", "1-12"),
            ("* * * * 8", "day of week", "0-7"),
            ("*/0 * * * *", "minute", "smallest step is 1"),
            ("* */0 * * *", "hour", "smallest step is 1"),
            ("5-1 * * * *", "minute", "`5-59,0-1`"),
            ("* * * * FRI-MON", "day of week", "`FRI-7,0-MON`"),
            ("* * * * 1-0", "day of week", "`1-7,0-0`"),
            ("5/10 * * * *", "minute", "`5-59/10`"),
            ("/10 * * * *", "minute", "`*/10`"),
            ("*/90 * * * *", "minute", "larger field"),
            ("*/ * * * *", "minute", "no number"),
            ("1,,2 * * * *", "minute", "extra comma"),
            (", * * * *", "minute", "extra comma"),
            ("JAN * * * *", "minute", "0-59"),
            ("* * * MON *", "month", "JAN-DEC"),
            ("-5 * * * *", "minute", "0-59"),
            ("5- * * * *", "minute", "0-59"),
            ("1.5 * * * *", "minute", "0-59"),
            ("? * * * *", "minute", "0-59"),
            ("* * * * L", "day of week", "`5L`"),
            ("* * * * 5#6", "day of week", "`#1` to `#5`"),
            ("* * 40W * *", "day of month", "1-31"),
            ("* * * * \u{0667}", "day of week", "0-7"),
        ] {
            let error = check(given).unwrap_err();
            assert!(matches!(error, ExpressionError::Field { .. }), "{given}: {error}");
            let text = error.to_string();
            assert!(text.contains(&format!(": {field} field")) && text.contains(remedy), "{given}: {text}");
            assert!(text.contains(given), "{text}");
        }
    }

    #[test]
    fn what_is_not_five_fields_is_refused_with_its_own_words() {
        assert_eq!(check(""), Err(ExpressionError::Empty));
        assert_eq!(check("  \t"), Err(ExpressionError::Empty));
        assert!(check("* * * *").unwrap_err().to_string().contains("has 4 fields: write five"));
        assert!(
            check("0 30 2 * * *").unwrap_err().to_string().contains("seconds and years are not supported")
        );
        assert!(check("0 30 2 * * * 2026").unwrap_err().to_string().contains("has 7 fields"));
        for word in ["@reboot", "@every 5m", "@"] {
            assert!(matches!(check(word), Err(ExpressionError::Nickname { .. })), "{word}");
        }
        assert!(matches!(check("CRON_TZ=UTC 0 2 * * *"), Err(ExpressionError::ZoneInside { .. })));
        assert!(matches!(check(&"1,".repeat(200)), Err(ExpressionError::TooLong { .. })));
    }

    #[test]
    fn numbers_and_lists_are_fixed_times_the_rest_are_intervals() {
        for (given, nature) in [
            ("30 2 * * *", Nature::FixedTimes),
            ("0,30 2,14 1-5 * MON-FRI", Nature::FixedTimes),
            ("@daily", Nature::FixedTimes),
            ("*/30 2 * * *", Nature::Interval),
            ("0 * * * *", Nature::Interval),
            ("0 9-17 * * *", Nature::Interval),
            ("@hourly", Nature::Interval),
        ] {
            assert_eq!(check(given).unwrap().nature, nature, "{given}");
        }
    }

    #[test]
    fn names_and_day_modifiers_are_read_in_any_case() {
        for given in [
            "0 0 * jan-mar mon-sun",
            "0 0 l * *",
            "0 0 LW * *",
            "0 0 15w * *",
            "0 0 * * fril",
            "0 0 ? * 5#2",
            "0 0 1 * +mon",
        ] {
            assert!(check(given).is_ok(), "{given}");
        }
    }
}
