//! The catalogue of mail templates: read whole at the start, never changed afterwards.
//!
//! ```text
//! <folder>/_layout/*.j2                     what templates extend or include
//! <folder>/<template>/manifest.json         class, description, variables with their types, sample
//! <folder>/<template>/<locale>/subject.txt.j2
//!                             /body.txt.j2  every mail has a text part
//!                             /body.html.j2 where the mail has an HTML part as well
//! ```
//!
//! Every template is rendered with its sample in every locale before [`Catalogue::load`] returns, so that a service which
//! started can render what it has. Variables that are not defined are errors, HTML parts escape what is put into them, and a
//! template that never ends is stopped. There is one renderer: sending and previewing use [`Catalogue::render`].

mod error;
mod load;
mod locale;
mod manifest;
mod source;
mod when;

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::{Map, Value};

pub use error::{CatalogueError, Flaw, RenderError};
pub use locale::{canonical as canonical_locale, chain as locale_chain};
pub use manifest::{Kind, Variable};

use crate::Class;
use crate::message::subject_fits;

/// Steps of one rendering; a hundred times what the largest shipped template takes.
const FUEL: u64 = 200_000;
/// The most bytes of one rendered part; far below any server's limit.
const PART_LONGEST: usize = 2 * 1024 * 1024;

/// All templates of a folder. Cheap to share behind an `Arc`; nothing in it changes.
#[derive(Debug)]
pub struct Catalogue {
    environment: Environment<'static>,
    templates: BTreeMap<String, Template>,
    default_locale: String,
    product: String,
}

/// One template, as far as it can be told without rendering it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Template {
    /// Its name, such as `auth.login_code`: the name of its folder.
    pub id: String,
    /// What its mails are for.
    pub class: Class,
    /// One sentence for operators.
    pub description: String,
    /// Whether its mails offer to end the subscription.
    pub unsubscribe: bool,
    /// The locales it has.
    pub locales: Vec<String>,
    /// What its texts use.
    #[schema(value_type = BTreeMap<String, Object>)]
    pub variables: BTreeMap<String, Variable>,
    /// The values that a preview is made of.
    #[schema(value_type = Object)]
    pub sample: Map<String, Value>,
    /// The first 12 hexadecimal digits of a SHA-256 over its files: changes when it changes.
    pub version: String,
    /// The locales that have an HTML part.
    #[serde(skip)]
    html: Vec<String>,
}

impl Template {
    /// The variables whose values must not be kept or shown after a mail was sent.
    pub fn sensitive(&self) -> impl Iterator<Item = &str> {
        let sensitive = self.variables.iter().filter(|(_, variable)| variable.sensitive);
        sensitive.map(|(name, _)| name.as_str())
    }
}

/// A mail's texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Rendered {
    /// The template's name.
    pub template: String,
    /// The template's version.
    pub version: String,
    /// What the mail is for.
    pub class: Class,
    /// Whether it offers to end the subscription.
    pub unsubscribe: bool,
    /// The locale whose texts these are.
    pub locale: String,
    /// True when these are not the texts of the locale that was asked for.
    pub fallback: bool,
    /// One line.
    pub subject: String,
    /// The text part.
    pub text: String,
    /// The HTML part.
    pub html: Option<String>,
}

impl Catalogue {
    /// Reads the catalogue in `folder`; the one that comes with the service where there is none. `default_locale` is what a
    /// template falls back to, and every template must have it. `product` is what the texts call the service.
    ///
    /// # Errors
    /// When the folder cannot be read, or anything in it is broken: all flaws, each with its file and line.
    pub fn load(folder: Option<&Path>, default_locale: &str, product: &str) -> Result<Self, CatalogueError> {
        let files = folder.map_or_else(|| Ok(source::shipped()), source::read)?;
        load::catalogue(&files, default_locale, product)
    }

    /// All templates, by name.
    pub fn templates(&self) -> impl Iterator<Item = &Template> {
        self.templates.values()
    }

    /// The template of this name.
    #[must_use]
    pub fn template(&self, id: &str) -> Option<&Template> {
        self.templates.get(id)
    }

    /// Renders a mail in the locale that is nearest to `locale`. The same input gives the same texts.
    ///
    /// # Errors
    /// [`RenderError`]; trying again would not help. Its text names variables and never shows their values.
    pub fn render(
        &self,
        id: &str,
        locale: &str,
        variables: &Map<String, Value>,
    ) -> Result<Rendered, RenderError> {
        let template = self.templates.get(id).ok_or_else(|| RenderError::Unknown(id.to_owned()))?;
        let chain = locale::chain(locale, &self.default_locale);
        let found = chain.iter().find(|locale| template.locales.contains(locale));
        // Every template has the default locale, which ends every chain.
        let resolved = found.unwrap_or(&self.default_locale);
        let fallback = locale::canonical(locale).as_ref() != Some(resolved);
        self.render_exactly(template, resolved, fallback, variables)
    }

    /// Renders a template's sample, by the same means as [`Self::render`].
    ///
    /// # Errors
    /// [`RenderError::Unknown`]: samples were rendered when the catalogue was loaded.
    pub fn preview(&self, id: &str, locale: &str) -> Result<Rendered, RenderError> {
        let template = self.templates.get(id).ok_or_else(|| RenderError::Unknown(id.to_owned()))?;
        self.render(id, locale, &template.sample)
    }

    fn render_exactly(
        &self,
        template: &Template,
        locale: &str,
        fallback: bool,
        variables: &Map<String, Value>,
    ) -> Result<Rendered, RenderError> {
        let mut problems = Vec::new();
        let mut context = manifest::fit(&template.variables, variables, "", &mut problems);
        if !problems.is_empty() {
            return Err(RenderError::Variables { template: template.id.clone(), problems });
        }
        let language = locale.split('-').next().unwrap_or(locale);
        context.insert("locale".into(), locale.into());
        context.insert("lang".into(), language.into());
        context.insert("product".into(), self.product.as_str().into());
        let context = minijinja::Value::from(Serde(&context));
        let part = |name: &str| self.part(&format!("{}/{locale}/{name}", template.id), &context);
        let subject = part(SUBJECT)?.trim().to_owned();
        self.check_subject(template, locale, &subject)?;
        let html = template.html.iter().any(|with| with == locale).then(|| part(HTML)).transpose()?;
        Ok(Rendered {
            template: template.id.clone(),
            version: template.version.clone(),
            class: template.class,
            unsubscribe: template.unsubscribe,
            locale: locale.to_owned(),
            fallback,
            subject,
            text: tidy(&part(TEXT)?),
            html,
        })
    }

    fn part(&self, file: &str, context: &minijinja::Value) -> Result<String, RenderError> {
        let failed = |error: minijinja::Error| load::render_error(file, &error);
        let text = self.environment.get_template(file).map_err(failed)?.render(context).map_err(failed)?;
        if text.len() > PART_LONGEST {
            let message = format!("the result is longer than {} MiB", PART_LONGEST / 1024 / 1024);
            return Err(RenderError::Failed { file: file.to_owned(), line: None, message });
        }
        Ok(text)
    }

    fn check_subject(&self, template: &Template, locale: &str, subject: &str) -> Result<(), RenderError> {
        let problem = match subject_fits(subject) {
            Ok(()) if subject.is_empty() => "is empty",
            Ok(()) => return Ok(()),
            Err(problem) => problem,
        };
        let file = format!("{}/{locale}/{SUBJECT}", template.id);
        Err(RenderError::Failed { file, line: None, message: format!("the subject {problem}") })
    }
}

const SUBJECT: &str = "subject.txt.j2";
const TEXT: &str = "body.txt.j2";
const HTML: &str = "body.html.j2";

/// The text part without spaces at the ends of lines, without runs of empty lines, ended by one line end: what a template's
/// conditions leave behind is not the reader's business.
fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    let mut empty_lines = 0;
    for line in text.trim().lines().map(str::trim_end) {
        empty_lines = if line.is_empty() { empty_lines + 1 } else { 0 };
        if empty_lines < 2 {
            tidy.push_str(line);
            tidy.push('\n');
        }
    }
    tidy
}
