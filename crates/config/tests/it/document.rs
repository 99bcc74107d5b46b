use std::path::Path;

use voiceai_config::{catalogue, document, manifest};

#[test]
fn the_document_says_what_the_declarations_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let made = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == made, "docs/configuration.md is stale: run UPDATE_DOCS=1 cargo test -p voiceai-config");
}

#[test]
fn every_declaration_is_sound() {
    let mut names = Vec::new();
    for declaration in catalogue::declarations() {
        names.push(declaration.name);
        names.extend(declaration.aliases);
        let doc = declaration.doc.trim();
        assert!(doc.ends_with('.') && doc.len() > 10, "{}: its doc is a sentence", declaration.name);
        if declaration.name.ends_with("_MS") {
            assert!(matches!(declaration.kind, voiceai_config::Kind::Milliseconds), "{}", declaration.name);
        }
        assert!(
            !(declaration.is_secret() && declaration.default.is_some()),
            "{}: a known secret",
            declaration.name
        );
    }
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a name is declared twice");
}

#[test]
fn the_manifest_has_the_platforms_shape() {
    let manifest = manifest();
    let json = serde_json::to_value(&manifest).unwrap();
    let variables = json["variables"].as_array().unwrap();
    assert_eq!((json["service"].as_str(), variables.len()), (Some("ops"), catalogue::declarations().count()));
    let find = |name: &str| variables.iter().find(|entry| entry["name"] == name).unwrap().clone();
    assert_eq!(find("LEADER_LOCK_TTL_MS")["default"], "10000");
    assert_eq!(find("ENVIRONMENT")["source"], "local");
    assert_eq!(find("REDIS_PASSWORD")["sensitive"], true);
    assert_eq!(find("WORKER_CONCURRENCY")["containers"], serde_json::json!(["voiceai-tasker"]));
    assert!(find("DATABASE_URL")["compose"]["template"].as_str().unwrap().contains("{DATABASE_HOST}"));
    let yaml = manifest.yaml();
    assert!(yaml.starts_with("service: ops\nvariables:\n  - name: \"ENVIRONMENT\"\n"), "{yaml}");
    assert_eq!(yaml.matches("\n  - name: \"").count(), variables.len());
}
