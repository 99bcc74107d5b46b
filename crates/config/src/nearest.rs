use crate::catalogue::{self, FOREIGN, PREFIXES, RETIRED};
use crate::layer::FILE_SUFFIX;
use crate::report::Warning;

/// How far a name may be from a setting's and still count as a slip of the hand, where nothing else marks it as ours.
const SLIP: usize = 2;
/// Shorter names are near too much (`PATH`, `PWD`).
const SHORTEST: usize = 8;

/// Warns about variables that look like ours and are none: a setting that is misspelt silently keeps its default.
pub(crate) fn unknown<'n>(names: impl IntoIterator<Item = &'n str>) -> Vec<Warning> {
    names.into_iter().filter(|name| !is_known(name)).filter_map(warning).collect()
}

fn warning(name: &str) -> Option<Warning> {
    if let Some((_, instead)) = RETIRED.iter().find(|(retired, _)| *retired == name) {
        let message = format!("is not read any more; {instead}");
        return Some(Warning { name: name.to_owned(), message, nearest: None });
    }
    let nearest = declared_names().map(|have| (strsim::damerau_levenshtein(name, have), have)).min();
    let ours = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let allowed = if ours { name.len() / 3 } else { SLIP };
    match nearest.filter(|(distance, _)| name.len() >= SHORTEST && *distance <= allowed) {
        Some((_, have)) => Some(Warning {
            name: name.to_owned(),
            message: format!("is not a setting and nothing reads it; did you mean {have}?"),
            nearest: Some(have.to_owned()),
        }),
        None => ours.then(|| Warning {
            name: name.to_owned(),
            message: "is not a setting and nothing reads it".to_owned(),
            nearest: None,
        }),
    }
}

fn declared_names() -> impl Iterator<Item = &'static str> {
    let declared = catalogue::declarations().filter(|declaration| !declaration.is_pattern());
    declared
        .flat_map(|declaration| std::iter::once(declaration.name).chain(declaration.aliases.iter().copied()))
}

fn is_known(name: &str) -> bool {
    let known = |name: &str| {
        declared_names().any(|have| have == name)
            || catalogue::declarations().any(|declaration| declaration.matched(name).is_some())
    };
    known(name)
        || name.strip_suffix(FILE_SUFFIX).is_some_and(known)
        || FOREIGN.iter().any(|foreign| foreign(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str) -> Option<(String, Option<String>)> {
        unknown([name]).pop().map(|warning| (warning.name, warning.nearest))
    }

    #[test]
    fn a_slip_names_the_setting_that_was_meant() {
        for (name, meant) in [
            ("LEADER_LOCK_TLL_MS", "LEADER_LOCK_TTL_MS"),
            ("DATABSE_URL", "DATABASE_URL"),
            ("DATABASEURL", "DATABASE_URL"),
            ("WORKER_CONCURENCY", "WORKER_CONCURRENCY"),
        ] {
            assert_eq!(found(name), Some((name.to_owned(), Some(meant.to_owned()))), "{name}");
        }
        assert_eq!(found("SCALING_MOOD"), Some(("SCALING_MOOD".to_owned(), None)));
    }

    #[test]
    fn other_programs_variables_are_none_of_our_business() {
        for name in [
            "PATH",
            "HOME",
            "HOSTNAME",
            "LESSOPEN",
            "PGHOST",
            "PGPASSWORD",
            "OTEL_SERVICE_NAME",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "AWS_PROFILE",
            "REDIS_SERVICE_HOST",
            "REDIS_PORT_6379_TCP_ADDR",
            "REDIS_PASSWORD_FILE",
            "QUEUE_EMAIL_QUEUE_RATE",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
    }

    #[test]
    fn a_dropped_variable_is_named_with_what_stands_in_its_place() {
        let warning = unknown(["MAIL_REDIS_ADDR"]).pop().expect("a warning");
        assert!(warning.message.contains("REDIS_URL"), "{}", warning.message);
    }
}
