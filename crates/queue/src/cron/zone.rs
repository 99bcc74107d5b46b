//! Finding a time zone by its IANA name.

use jiff::tz::TimeZone;

/// The zone is not in the time-zone database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time zone {given:?} is unknown: {}", remedy(.nearest.as_deref()))]
pub struct ZoneError {
    /// What was given.
    pub given: String,
    /// The name in the database that is spelled most like it, when one is near.
    pub nearest: Option<String>,
}

fn remedy(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || "give an IANA name such as `Europe/Berlin`, or `UTC`".to_owned(),
        |name| format!("did you mean `{name}`?"),
    )
}

/// The zone under a name, letter case aside, with the name as the database spells it. Offsets (`+02:00`) and POSIX rules are
/// refused: they know nothing of a country's clock changes.
pub(crate) fn find_zone(given: &str) -> Result<(String, TimeZone), ZoneError> {
    let unknown = || ZoneError { given: given.to_owned(), nearest: nearest_name(given) };
    if given.is_empty() || given.len() > 64 {
        return Err(unknown());
    }
    let zone = TimeZone::get(given).map_err(|_| unknown())?;
    let name = zone.iana_name().ok_or_else(unknown)?.to_owned();
    Ok((name, zone))
}

fn nearest_name(given: &str) -> Option<String> {
    let wanted: String =
        given.trim().chars().take(64).collect::<String>().to_ascii_lowercase().replace(' ', "_");
    let distance = |name: &str| {
        let name = name.to_ascii_lowercase();
        // `Berlin` alone means `Europe/Berlin`: the last part is compared as well.
        let city = name.rsplit('/').next().unwrap_or(&name).to_owned();
        strsim::damerau_levenshtein(&wanted, &name).min(strsim::damerau_levenshtein(&wanted, &city))
    };
    let bound = (wanted.len() / 3).clamp(1, 4);
    jiff::tz::db()
        .available()
        .map(|name| name.to_string())
        .filter(|name| name != "Etc/Unknown" && !name.starts_with("posix/") && !name.starts_with("right/"))
        .map(|name| (distance(&name), name))
        .min()
        .filter(|(distance, _)| *distance <= bound)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_as_in_the_database() {
        assert_eq!(find_zone("europe/berlin").unwrap().0, "Europe/Berlin");
        assert_eq!(find_zone("utc").unwrap().0, "UTC");
    }

    #[test]
    fn an_unknown_zone_names_the_nearest() {
        for (given, nearest) in [
            ("Europe/Berlim", Some("Europe/Berlin")),
            ("Berlin", Some("Europe/Berlin")),
            ("America/New York", Some("America/New_York")),
            ("Mars/Olympus", None),
            ("+02:00", None),
            ("", None),
        ] {
            let error = find_zone(given).unwrap_err();
            assert_eq!(error.nearest.as_deref(), nearest, "{given}");
            assert!(error.to_string().contains(given), "{error}");
        }
    }
}
