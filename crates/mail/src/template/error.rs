use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong with a catalogue, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The file, inside the catalogue's folder.
    pub file: PathBuf,
    /// The line, counted from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The catalogue cannot be used; a service does not start with it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The folder or a file in it cannot be read.
    #[error("read the mail template {}", .path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Templates are broken; all flaws at once.
    #[error("{} in the mail templates: {}", count(.0.len()), list(.0))]
    Broken(Vec<Flaw>),
}

fn count(flaws: usize) -> String {
    if flaws == 1 { "an error".to_owned() } else { format!("{flaws} errors") }
}

fn list(flaws: &[Flaw]) -> String {
    flaws.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A mail cannot be made from a template and these variables. Trying again would end the same way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// No such template.
    #[error("there is no mail template `{0}`; `mail templates` lists them")]
    Unknown(String),
    /// Variables are missing or of another type. Names them, never their values.
    #[error("the variables do not fit the mail template `{template}`: {}", .problems.join("; "))]
    Variables {
        /// The template.
        template: String,
        /// A text for each.
        problems: Vec<String>,
    },
    /// The template failed on these variables.
    #[error("render {file}{}: {message}", .line.map(|line| format!(":{line}")).unwrap_or_default())]
    Failed {
        /// The file, inside the catalogue's folder.
        file: String,
        /// The line, counted from 1, where it is known.
        line: Option<usize>,
        /// What went wrong.
        message: String,
    },
}
