//! How narfs ends: exit statuses, and failures with what caused them and what to do.

use std::{error::Error, fmt, process::ExitCode};

use crate::config::ConfigError;

/// Exit statuses. `narfs run` ends with the program's instead, once that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// It failed for a reason that none of the others names.
    Failure = 1,
    /// The command line or the configuration is wrong; nothing was done.
    Usage = 2,
    /// No cache has the store path, or there is no such file in it.
    NotFound = 3,
    /// No trusted signature, or bytes that do not have the hash that was signed.
    Untrusted = 4,
    /// A cache or the daemon cannot be reached or did not answer in time: trying again may help.
    Unavailable = 5,
    /// The kernel or the system does not allow it: no FUSE, no privilege, mountpoint in use.
    System = 6,
    /// The program was found but cannot be executed (`narfs run`; as shells have it).
    NotExecutable = 126,
    /// There is no such program (`narfs run`; as shells have it).
    NoProgram = 127,
    /// Interrupted from the keyboard (128 + SIGINT; as shells have it).
    Interrupted = 130,
}

impl Exit {
    /// Every status with its meaning, for help texts and the documentation.
    pub const ALL: [(Self, &str); 10] = [
        (Self::Success, "done"),
        (
            Self::Failure,
            "failed for a reason that none of the others names",
        ),
        (
            Self::Usage,
            "the command line or the configuration is wrong; nothing was done",
        ),
        (
            Self::NotFound,
            "no cache has the store path, or there is no such file in it",
        ),
        (
            Self::Untrusted,
            "no trusted signature, or bytes without the hash that was signed",
        ),
        (
            Self::Unavailable,
            "a cache or the daemon cannot be reached or did not answer in time",
        ),
        (
            Self::System,
            "the system does not allow it: no FUSE, no privilege, mountpoint in use",
        ),
        (
            Self::NotExecutable,
            "`narfs run`: the program cannot be executed",
        ),
        (Self::NoProgram, "`narfs run`: there is no such program"),
        (Self::Interrupted, "interrupted from the keyboard"),
    ];

    /// The status with this number; any other means a failure without a name.
    pub fn from_code(code: u8) -> Self {
        let found = Self::ALL.iter().find(|(exit, _)| exit.code() == code);
        found.map_or(Self::Failure, |(exit, _)| *exit)
    }

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a verb failed, ready to be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// What did not work, naming the store path, the file or the cache.
    pub what: String,
    /// Why, the nearest cause first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without further causes.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// A failure that `error` describes, with its chain of sources as causes.
    pub fn from_error(exit: Exit, error: &dyn Error) -> Self {
        Self::new(exit, error.to_string()).caused_by_chain(error.source())
    }

    /// With `error` and its sources as causes.
    pub fn because(self, error: &dyn Error) -> Self {
        self.caused_by_chain(Some(error))
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn caused_by_chain(mut self, mut next: Option<&dyn Error>) -> Self {
        while let Some(error) = next {
            let text = error.to_string();
            // Many errors repeat their source in their own message.
            let said = self.causes.last().unwrap_or(&self.what);
            if !said.contains(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }
}

/// `narfs: WHAT`, then a line for each cause and one for the hint.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "narfs: {}", printable(&self.what))?;
        for cause in &self.causes {
            write!(f, "\n  cause: {}", printable(cause))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {}", printable(hint)),
            None => Ok(()),
        }
    }
}

impl Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let failure = Self::from_error(Exit::Usage, &error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// `text` on one line and without control characters: what caches send must not move the cursor.
pub fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.trim_end().chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Layer {
        what: &'static str,
        source: Option<Box<dyn Error>>,
    }

    #[test]
    fn prints_what_why_and_what_to_do() {
        let inner = Layer {
            what: "connection refused",
            source: None,
        };
        let same = Layer {
            what: "https://h/: connection refused",
            source: Some(Box::new(inner)),
        };
        let outer = Layer {
            what: "no narinfo for abc",
            source: Some(Box::new(same)),
        };
        let failure = Failure::from_error(Exit::Unavailable, &outer).hint("try again");
        let want =
            "narfs: no narinfo for abc\n  cause: https://h/: connection refused\n  hint: try again";
        assert_eq!(failure.to_string(), want);
    }

    #[test]
    fn a_configuration_error_is_one_of_usage() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::from(ConfigError::Read {
            path: "/etc/x".into(),
            source,
        });
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(
            failure.to_string(),
            "narfs: the configuration file /etc/x cannot be read\n  cause: permission denied"
        );
    }

    #[test]
    fn statuses_are_listed_once_and_in_order() {
        let codes: Vec<_> = Exit::ALL.iter().map(|(exit, _)| exit.code()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
    }
}
