use std::process;

/// How a command ended. The numbers are a contract: scripts and orchestrators branch on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Wrong use: unknown argument, missing confirmation or actor.
    Usage,
    /// The named thing does not exist.
    NotFound,
    /// Refused: invalid configuration or an unmet precondition; nothing was done.
    Refused,
    /// A backend cannot be reached.
    Unreachable,
    /// Done for some and not for others.
    Partial,
    /// A health check found something unhealthy.
    Unhealthy,
}

impl ExitCode {
    /// The process's exit status.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::Unreachable => 5,
            Self::Partial => 6,
            Self::Unhealthy => 7,
        }
    }
}

impl From<ExitCode> for process::ExitCode {
    fn from(exit: ExitCode) -> Self {
        Self::from(exit.code())
    }
}
