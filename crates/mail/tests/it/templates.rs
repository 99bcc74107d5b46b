use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use voiceai_mail::Class;
use voiceai_mail::template::{Catalogue, CatalogueError, RenderError};

fn shipped() -> Catalogue {
    Catalogue::load(None, "en", "Delphi").expect("the shipped templates are sound")
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("not an object: {value}") };
    map
}

/// A catalogue of one template, `t`, made of these parts.
fn made_of(manifest: &Value, subject: &str, text: &str, html: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "t/manifest.json", &manifest.to_string());
    write(folder.path(), "t/en/subject.txt.j2", subject);
    write(folder.path(), "t/en/body.txt.j2", text);
    if let Some(html) = html {
        write(folder.path(), "t/en/body.html.j2", html);
    }
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("create");
    fs::write(path, text).expect("write");
}

fn load(folder: &tempfile::TempDir) -> Result<Catalogue, CatalogueError> {
    Catalogue::load(Some(folder.path()), "en", "Delphi")
}

fn flaws(folder: &tempfile::TempDir) -> String {
    load(folder).map(|_| ()).expect_err("the catalogue is broken").to_string()
}

fn plain() -> Value {
    json!({"class": "transactional", "description": "A test.", "variables": {"name": {"type": "string"}}, "sample": {"name": "Kim"}})
}

/// Every shipped template in every locale, as it goes out: what changes here changes in people's mailboxes.
#[test]
fn every_shipped_template_in_every_locale() {
    let catalogue = shipped();
    for template in catalogue.templates() {
        assert_eq!(template.locales, ["de", "en"], "{}", template.id);
        for locale in &template.locales {
            let mail = catalogue.preview(&template.id, locale).expect("a sample renders");
            assert!(!mail.fallback && mail.html.is_some(), "{}", template.id);
            let html = mail.html.as_deref().unwrap_or_default();
            let shown = format!("Subject: {}\nClass: {}\n\n{}\n{html}", mail.subject, mail.class, mail.text);
            insta::with_settings!({ snapshot_path => "snapshots/templates", prepend_module_to_snapshot => false, omit_expression => true }, {
                insta::assert_snapshot!(format!("{}.{locale}", template.id), shown);
            });
        }
    }
    assert_eq!(catalogue.templates().count(), 27);
}

#[test]
fn html_parts_fit_a_phone() {
    let catalogue = shipped();
    for template in catalogue.templates() {
        let html = catalogue.preview(&template.id, "de").expect("a sample renders").html.unwrap_or_default();
        assert!(html.contains("name=\"viewport\"") && html.contains("lang=\"de\""), "{}", template.id);
        assert!(html.contains("max-width:560px") && html.contains("font-size:16px"), "{}", template.id);
        // Nothing is fetched from elsewhere, and no width is demanded that a phone does not have.
        assert!(
            !html.contains("<img") && !html.contains("<script") && !html.contains(" src="),
            "{}",
            template.id
        );
        assert!(!html.contains("width=\"6"), "{}", template.id);
    }
}

#[test]
fn the_nearest_locale_is_taken_and_a_fallback_is_said() {
    let catalogue = shipped();
    let variables = object(json!({"code": "123456"}));
    for (asked, got, fallback) in [
        ("de", "de", false),
        ("de-AT", "de", true),
        ("DE_ch", "de", true),
        ("fr-FR", "en", true),
        ("", "en", true),
        ("en", "en", false),
    ] {
        let mail = catalogue.render("auth.login_code", asked, &variables).expect("it renders");
        assert_eq!((mail.locale.as_str(), mail.fallback), (got, fallback), "{asked}");
        assert!(mail.subject.contains("123456") && mail.text.contains("123456"));
        assert_eq!((mail.class, mail.unsubscribe), (Class::Auth, false));
    }
    let sensitive: Vec<_> = catalogue.template("auth.login_code").expect("it ships").sensitive().collect();
    assert_eq!(sensitive, ["code"]);
}

#[test]
fn variables_are_held_to_their_types_and_errors_never_show_values() {
    let catalogue = shipped();
    let wrong = object(
        json!({"name": 7, "export_name": "x", "download_url": "javascript:canary()", "expires_at": "canary", "rows": 1.5}),
    );
    let error = catalogue.render("export.ready", "en", &wrong).expect_err("they do not fit");
    let RenderError::Variables { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(
        problems,
        &[
            "`download_url` is not an https or http address",
            "`expires_at` is not a time such as 2026-11-22T14:05:00Z",
            "`name` is not a text",
            "`rows` is not a whole number",
        ]
    );
    assert!(!error.to_string().contains("canary"));
    let missing = catalogue.render("auth.login_code", "en", &Map::new()).expect_err("the code is missing");
    assert!(missing.to_string().contains("`code` is missing"), "{missing}");
    assert!(matches!(catalogue.render("no.such", "en", &Map::new()), Err(RenderError::Unknown(_))));
    // What a newer producer adds is no error for an older catalogue.
    let more = object(json!({"code": "1", "later": true, "expires_minutes": null}));
    assert!(catalogue.render("auth.login_code", "en", &more).is_ok());
    let nested = object(json!({"title": "t", "period": "p", "metrics": [{"label": "a"}]}));
    let error = catalogue.render("admin-report", "en", &nested).expect_err("a field is missing");
    assert!(
        error.to_string().contains("`metrics[0].value` is missing")
            || error.to_string().contains("metrics[0]"),
        "{error}"
    );
}

#[test]
fn html_is_escaped_and_text_is_not() {
    let catalogue = shipped();
    let given = object(json!({"name": "<b>Kim & Co</b>", "login_url": "https://example.com/?a=1&b=2"}));
    let mail = catalogue.render("welcome", "en", &given).expect("it renders");
    let html = mail.html.unwrap_or_default();
    assert!(!html.contains("<b>Kim") && html.contains("&lt;b&gt;Kim &amp; Co"), "{html}");
    assert!(mail.text.contains("<b>Kim & Co</b>") && mail.text.contains("?a=1&b=2"));
}

#[test]
fn a_subject_stays_one_line() {
    let folder = made_of(&plain(), "Hello {{ name }}", "text", None);
    let catalogue = load(&folder).expect("sound");
    let error = catalogue
        .render("t", "en", &object(json!({"name": "x\r\nBcc: eve@example.com"})))
        .expect_err("two lines are no subject");
    assert!(error.to_string().contains("t/en/subject.txt.j2"), "{error}");
}

#[test]
fn the_same_input_gives_the_same_texts() {
    let (one, two) = (shipped(), shipped());
    for template in one.templates() {
        assert_eq!(one.preview(&template.id, "de").ok(), two.preview(&template.id, "de").ok());
        assert_eq!(Some(&template.version), two.template(&template.id).map(|template| &template.version));
    }
}

#[test]
fn what_is_broken_is_named_with_file_and_line() {
    let syntax = made_of(&plain(), "s", "one\ntwo\n{% if name %}\nthree", None);
    assert!(flaws(&syntax).contains("t/en/body.txt.j2:4: syntax error"), "{}", flaws(&syntax));

    let undeclared = made_of(&plain(), "s", "one\n{% if name == 'x' %}\n{{ nmae }}{% endif %}", None);
    assert!(flaws(&undeclared).contains("t/en/body.txt.j2:3: uses `nmae`"), "{}", flaws(&undeclared));

    let undefined = made_of(&plain(), "s", "text\n{{ name.first.second }}", None);
    assert!(flaws(&undefined).contains("t/en/body.txt.j2:2: undefined value"), "{}", flaws(&undefined));

    let endless = made_of(
        &plain(),
        "s",
        "{% for a in range(9000) %}{% for b in range(9000) %}{{ b }}{% endfor %}{% endfor %}",
        None,
    );
    assert!(flaws(&endless).contains("t/en/body.txt.j2:1: takes too many steps"), "{}", flaws(&endless));

    let empty = made_of(&plain(), "", "text", None);
    assert!(flaws(&empty).contains("t/en/subject.txt.j2: the subject is empty"), "{}", flaws(&empty));

    let manifest = tempfile::tempdir().expect("a folder");
    write(manifest.path(), "t/manifest.json", "{\n \"class\": \"letter\"\n}");
    assert!(flaws(&manifest).contains("t/manifest.json:2: unknown variant `letter`"), "{}", flaws(&manifest));
    write(
        manifest.path(),
        "t/manifest.json",
        "{\"class\": \"auth\", \"description\": \"d\", \"unsubscribe\": true}",
    );
    let told = flaws(&manifest);
    assert!(told.contains("cannot be unsubscribed from") && told.contains("no texts in `en`"), "{told}");
}

#[test]
fn folders_that_are_no_catalogue() {
    let empty = tempfile::tempdir().expect("a folder");
    assert!(flaws(&empty).contains("no template"), "{}", flaws(&empty));
    let nowhere = Catalogue::load(Some(Path::new("/does/not/exist")), "en", "Delphi").map(|_| ());
    assert!(nowhere.expect_err("it is not there").to_string().contains("/does/not/exist"));
    let partial = made_of(&plain(), "s", "t", None);
    write(partial.path(), "t/de/subject.txt.j2", "s");
    write(partial.path(), "t/en/body.htm.j2", "s");
    write(partial.path(), "t/EN_us/subject.txt.j2", "s");
    let told = flaws(&partial);
    for flaw in ["t/de/body.txt.j2: is missing", "t/en/body.htm.j2: is none of", "t/EN_us: a locale's folder"]
    {
        assert!(told.contains(flaw), "{flaw} not in {told}");
    }
    // What orchestrators put beside mounted files is not ours.
    let mounted = made_of(&plain(), "s", "t", None);
    write(mounted.path(), "..data/t/manifest.json", "nonsense");
    assert_eq!(load(&mounted).map(|catalogue| catalogue.templates().count()).ok(), Some(1));
}

#[test]
fn a_variable_says_what_it_is() {
    for (variable, told) in [
        (json!({"type": "text"}), "`text` is no type"),
        (json!({"type": "list"}), "a list says by `of`"),
        (json!({"type": "string", "of": {"type": "string"}}), "do not belong to the type `string`"),
        (json!({"type": "string", "requird": false}), "unknown field `requird`"),
    ] {
        let manifest = json!({"class": "system", "description": "d", "variables": {"name": variable}});
        let folder = made_of(&manifest, "s", "t", None);
        assert!(flaws(&folder).contains(told), "{}", flaws(&folder));
    }
}
