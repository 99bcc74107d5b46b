use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use jiff::Timestamp;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, State, UndefinedBehavior};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::error::{CatalogueError, Flaw, RenderError};
use super::manifest::Manifest;
use super::source::Files;
use super::{Catalogue, FUEL, HTML, SUBJECT, TEXT, Template, locale, when};
use crate::Class;

/// What every text may use beside its template's variables.
const GIVEN: [&str; 3] = ["locale", "lang", "product"];

/// Makes the catalogue of these files and renders every sample.
pub(super) fn catalogue(
    files: &Files,
    default_locale: &str,
    product: &str,
) -> Result<Catalogue, CatalogueError> {
    let mut flaws = Vec::new();
    let environment = environment(files, &mut flaws);
    let default_locale = locale::canonical(default_locale).unwrap_or_else(|| "en".to_owned());
    let mut templates = BTreeMap::new();
    for id in ids(files) {
        if let Some(template) = template(&id, files, &default_locale, &mut flaws) {
            templates.insert(id, template);
        }
    }
    if templates.is_empty() && flaws.is_empty() {
        let message = "no template: expected folders with a manifest.json each".to_owned();
        flaws.push(Flaw { file: PathBuf::from("."), line: None, message });
    }
    let catalogue = Catalogue { environment, templates, default_locale, product: product.to_owned() };
    if flaws.is_empty() {
        for template in catalogue.templates.values() {
            check_names(&catalogue.environment, template, &mut flaws);
            check_sample(&catalogue, template, &mut flaws);
        }
    }
    if flaws.is_empty() { Ok(catalogue) } else { Err(CatalogueError::Broken(flaws)) }
}

fn environment(files: &Files, flaws: &mut Vec<Flaw>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|name| {
        if name.ends_with(".html.j2") { AutoEscape::Html } else { AutoEscape::None }
    });
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(50);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.add_filter("when", when_filter);
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".j2")) {
        if let Err(error) = environment.add_template_owned(name.clone(), text.clone()) {
            flaws.push(Flaw { file: name.into(), line: error.line(), message: said(&error) });
        }
    }
    environment
}

/// `{{ expires_at | when }}`: the time in the words of the mail's language.
fn when_filter(state: &State<'_, '_>, value: &str) -> Result<String, minijinja::Error> {
    let timestamp: Timestamp = value.parse().map_err(|_| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "`when` takes a time such as 2026-11-22T14:05:00Z")
    })?;
    let language = state.lookup("lang").map(|lang| lang.to_string()).unwrap_or_default();
    Ok(when::when(timestamp, &language))
}

/// The folders that hold templates; those that begin with an underscore hold what templates share.
fn ids(files: &Files) -> BTreeSet<String> {
    let folders = files.keys().filter_map(|name| name.split_once('/')).map(|(folder, _)| folder);
    folders.filter(|folder| !folder.starts_with('_')).map(ToOwned::to_owned).collect()
}

fn template(id: &str, files: &Files, default_locale: &str, flaws: &mut Vec<Flaw>) -> Option<Template> {
    let manifest_file = format!("{id}/manifest.json");
    let mut flaw = |file: String, line: Option<usize>, message: String| {
        flaws.push(Flaw { file: file.into(), line, message });
    };
    if !is_id(id) {
        let message =
            "a template's name has lower-case letters, digits, `_`, `-` and `.`, at most 64".to_owned();
        flaw(id.to_owned(), None, message);
        return None;
    }
    let Some(text) = files.get(&manifest_file) else {
        flaw(manifest_file, None, "is missing".to_owned());
        return None;
    };
    let manifest: Manifest = match serde_json::from_str(text) {
        Ok(manifest) => manifest,
        Err(error) => {
            flaw(manifest_file, Some(error.line()), error.to_string());
            return None;
        }
    };
    if manifest.class == Class::Auth && manifest.unsubscribe {
        flaw(
            manifest_file.clone(),
            None,
            "a mail of the class `auth` cannot be unsubscribed from".to_owned(),
        );
    }
    for name in manifest.variables.keys().filter(|name| GIVEN.contains(&name.as_str())) {
        flaw(
            manifest_file.clone(),
            None,
            format!("`{name}` is given to every template; name the variable otherwise"),
        );
    }
    for name in manifest.sample.keys().filter(|name| !manifest.variables.contains_key(*name)) {
        flaw(
            manifest_file.clone(),
            None,
            format!("the sample has `{name}`, which is not among the variables"),
        );
    }
    let own = files.keys().filter_map(|name| name.strip_prefix(id)?.strip_prefix('/'));
    let mut locales: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (folder, file) in own.filter_map(|name| name.split_once('/')) {
        locales.entry(folder).or_default().push(file);
    }
    for (folder, found) in &locales {
        if locale::canonical(folder).as_deref() != Some(folder) {
            flaw(
                format!("{id}/{folder}"),
                None,
                "a locale's folder is named as `en`, `de-AT` or `zh-Hant`".to_owned(),
            );
        }
        for needed in [SUBJECT, TEXT].into_iter().filter(|needed| !found.contains(needed)) {
            flaw(format!("{id}/{folder}/{needed}"), None, "is missing".to_owned());
        }
        for other in found.iter().filter(|file| ![SUBJECT, TEXT, HTML].contains(file)) {
            let message = format!("is none of {SUBJECT}, {TEXT} and {HTML}");
            flaw(format!("{id}/{folder}/{other}"), None, message);
        }
    }
    if !locales.contains_key(default_locale) {
        let message = format!("has no texts in `{default_locale}`, which every template falls back to");
        flaw(id.to_owned(), None, message);
    }
    let html = locales
        .iter()
        .filter(|(_, files)| files.contains(&HTML))
        .map(|(name, _)| (*name).to_owned())
        .collect();
    Some(Template {
        id: id.to_owned(),
        class: manifest.class,
        description: manifest.description,
        unsubscribe: manifest.unsubscribe,
        locales: locales.keys().map(|name| (*name).to_owned()).collect(),
        variables: manifest.variables,
        sample: manifest.sample,
        version: version(id, files),
        html,
    })
}

fn is_id(id: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.');
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

/// Changes with the template and with what templates share.
fn version(id: &str, files: &Files) -> String {
    let mut hash = Sha256::new();
    let belongs = |name: &str| name.starts_with('_') || name.split('/').next() == Some(id);
    for (name, text) in files.iter().filter(|(name, _)| belongs(name)) {
        for part in [name, text] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// A name that is used in a branch which the sample does not reach would fail on a customer's mail.
fn check_names(environment: &Environment<'_>, template: &Template, flaws: &mut Vec<Flaw>) {
    let globals: HashSet<String> = environment.globals().map(|(name, _)| name.to_owned()).collect();
    for (locale, part) in parts(template) {
        let file = format!("{}/{locale}/{part}", template.id);
        let Ok(parsed) = environment.get_template(&file) else { continue };
        for name in parsed.undeclared_variables(false) {
            let known = template.variables.contains_key(&name) || GIVEN.contains(&name.as_str());
            if !known && !globals.contains(&name) && name != "super" && name != "self" {
                let line = line_of(parsed.source(), &name);
                let message = format!("uses `{name}`, which manifest.json does not declare");
                flaws.push(Flaw { file: file.clone().into(), line, message });
            }
        }
    }
}

fn line_of(text: &str, name: &str) -> Option<usize> {
    text.lines().position(|line| line.contains(name)).map(|at| at + 1)
}

fn parts(template: &Template) -> impl Iterator<Item = (&str, &'static str)> {
    template.locales.iter().flat_map(|locale| {
        let html = template.html.contains(locale).then_some(HTML);
        [Some(SUBJECT), Some(TEXT), html].into_iter().flatten().map(move |part| (locale.as_str(), part))
    })
}

/// Renders the sample in every locale, and once more with nothing but what is required: both are mails that will be sent.
fn check_sample(catalogue: &Catalogue, template: &Template, flaws: &mut Vec<Flaw>) {
    let required = |name: &String| template.variables.get(name).is_some_and(|variable| variable.required);
    let least: Map<String, Value> = template
        .sample
        .iter()
        .filter(|(name, _)| required(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    for locale in &template.locales {
        let outcomes = [&template.sample, &least]
            .map(|sample| catalogue.render_exactly(template, locale, false, sample));
        for outcome in outcomes {
            let flaw = match outcome {
                Ok(rendered) if !rendered.text.trim().is_empty() => continue,
                Ok(_) => {
                    flaw_in(format!("{}/{locale}/{TEXT}", template.id), None, "the text is empty".to_owned())
                }
                Err(RenderError::Failed { file, line, message }) => flaw_in(file, line, message),
                Err(error) => {
                    flaw_in(format!("{}/manifest.json", template.id), None, format!("the sample: {error}"))
                }
            };
            if !flaws.contains(&flaw) {
                flaws.push(flaw);
            }
        }
    }
}

fn flaw_in(file: String, line: Option<usize>, message: String) -> Flaw {
    Flaw { file: file.into(), line, message }
}

/// What went wrong and in which file; an error inside a layout names the layout.
pub(super) fn render_error(file: &str, error: &minijinja::Error) -> RenderError {
    let mut innermost = error;
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(source) = source.downcast_ref::<minijinja::Error>() {
            innermost = source;
        }
        next = source.source();
    }
    let named = innermost.name().or_else(|| error.name()).unwrap_or(file);
    RenderError::Failed { file: named.to_owned(), line: innermost.line(), message: said(innermost) }
}

/// The kind of an error and its detail, without the values that were rendered.
fn said(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "takes too many steps; a loop may have no end".to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}
