//! What a proxy says that it has loaded, and how that differs from the records.

use serde_json::Value;

use super::dispatcher::DispatcherSet;

/// Differences that are told; more of them are only counted.
const TOLD: usize = 10;

/// One destination as Kamailio lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its set.
    pub setid: u32,
    /// Its SIP URI.
    pub destination: String,
    /// Its name, when its record gave it one.
    pub duid: Option<String>,
    /// `A` active, `T` trying, `I` inactive, `D` disabled; then `P` probed or `X`.
    pub state: String,
}

impl Target {
    /// True when no new call is sent there whatever the probes say.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.state.starts_with('D')
    }

    /// True when new calls are sent there now.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state.starts_with(['A', 'T'])
    }
}

/// Reads the result of `dispatcher.list`; `None` when it is none.
#[must_use]
pub fn read(result: &Value) -> Option<Vec<Target>> {
    let mut targets = Vec::new();
    for set in result.get("RECORDS")?.as_array()? {
        let set = set.get("SET")?;
        let setid = u32::try_from(set.get("ID")?.as_i64()?).ok()?;
        for target in set.get("TARGETS")?.as_array()? {
            let target = target.get("DEST")?;
            let duid = target.get("ATTRS").and_then(|attributes| attributes.get("DUID")?.as_str());
            targets.push(Target {
                setid,
                destination: target.get("URI")?.as_str()?.to_owned(),
                duid: duid.filter(|duid| !duid.is_empty()).map(str::to_owned),
                state: target.get("FLAGS")?.as_str()?.to_owned(),
            });
        }
    }
    Some(targets)
}

/// How what a proxy has loaded differs from the records, in words; empty: not at all. What its probes found is no difference.
#[must_use]
pub fn differences(set: &DispatcherSet, targets: &[Target]) -> Vec<String> {
    let mut found = Vec::new();
    for record in &set.records {
        // Others' records may be such as Kamailio passes over, like a host that no longer resolves.
        if record.duid.as_deref() != Some(record.name.as_str()) {
            continue;
        }
        let name = &record.name;
        let same = |target: &&Target| {
            target.setid == record.setid
                && target.destination == record.destination
                && target.duid.as_deref() == Some(name.as_str())
        };
        match targets.iter().find(same) {
            None => found.push(format!("{name} is not loaded at {}", record.destination)),
            Some(target) if target.is_disabled() != record.is_disabled() => {
                let is = if target.is_disabled() { "out of" } else { "in" };
                found.push(format!("{name} is still {is} service ({})", target.state));
            }
            Some(_) => {}
        }
    }
    for target in targets {
        let Some(duid) = &target.duid else { continue };
        let known = set.records.iter().any(|record| {
            record.duid.as_ref() == Some(duid)
                && record.destination == target.destination
                && record.setid == target.setid
        });
        if !known {
            found.push(format!("{duid} is still loaded at {}", target.destination));
        }
    }
    if found.len() > TOLD {
        let more = found.len() - TOLD;
        found.truncate(TOLD);
        found.push(format!("and {more} more"));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::dispatcher::Stored;
    use super::*;

    fn stored(name: &str, flags: u32) -> Stored {
        Stored {
            name: name.to_owned(),
            setid: 1,
            destination: format!("sip:{name}:5060"),
            flags,
            duid: Some(name.to_owned()),
        }
    }

    fn listed(entries: &[(&str, &str)]) -> Vec<Target> {
        let targets: Vec<Value> = entries
            .iter()
            .map(|(name, state)| {
                json!({ "DEST": { "URI": format!("sip:{name}:5060"), "FLAGS": state, "PRIORITY": 0,
                    "ATTRS": { "BODY": format!("duid={name}"), "DUID": name, "SOCKET": null } } })
            })
            .collect();
        read(&json!({ "NRSETS": 1, "RECORDS": [{ "SET": { "ID": 1, "TARGETS": targets } }] }))
            .expect("a list")
    }

    #[test]
    fn what_was_loaded_is_compared_and_probes_are_not() {
        let set =
            DispatcherSet { generation: 1, records: vec![stored("a", 8), stored("b", 12), stored("c", 9)] };
        for (entries, expected) in [
            (&[("a", "AP"), ("b", "DP"), ("c", "IP")][..], &[][..]),
            (&[("a", "IP"), ("b", "DX"), ("c", "AP")], &[]),
            (&[("a", "AP"), ("b", "AP"), ("c", "AP")], &["b is still in service (AP)"]),
            (&[("a", "DP"), ("b", "DP"), ("c", "AP")], &["a is still out of service (DP)"]),
            (&[("a", "AP"), ("b", "DP")], &["c is not loaded at sip:c:5060"]),
            (&[("a", "AP"), ("b", "DP"), ("c", "AP"), ("d", "AP")], &["d is still loaded at sip:d:5060"]),
        ] {
            assert_eq!(differences(&set, &listed(entries)), expected, "{entries:?}");
        }
    }

    #[test]
    fn records_of_others_are_theirs() {
        let mut foreign = stored("trunk", 0);
        foreign.duid = None;
        let set = DispatcherSet { generation: 1, records: vec![foreign] };
        assert_eq!(differences(&set, &[]), [] as [String; 0]);
        let unnamed =
            Target { setid: 7, destination: "sip:elsewhere".to_owned(), duid: None, state: "AX".to_owned() };
        assert_eq!(differences(&set, &[unnamed]), [] as [String; 0]);
    }

    #[test]
    fn many_differences_are_counted() {
        let records = (0..30).map(|number| stored(&format!("s{number}"), 8)).collect();
        let found = differences(&DispatcherSet { generation: 1, records }, &[]);
        assert_eq!((found.len(), found.last().map(String::as_str)), (TOLD + 1, Some("and 20 more")));
    }

    #[test]
    fn what_is_no_list_is_none() {
        for other in [json!(null), json!({}), json!({ "RECORDS": [{}] }), json!({ "RECORDS": "x" })] {
            assert_eq!(read(&other), None, "{other}");
        }
        assert_eq!(read(&json!({ "NRSETS": 0, "RECORDS": [] })), Some(Vec::new()));
    }
}
