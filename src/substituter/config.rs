//! A substituter as a user configures it.

use std::{fmt, path::PathBuf};

use super::{credentials, error::SubstituterError, location, secret::Secret};

/// One substituter as configured. Its `Debug` shows no secrets.
#[derive(Clone, Default)]
pub struct SubstituterConfig {
    /// `http://`, `https://`, `file://`, `s3://`, or an absolute path. User and password may stand
    /// in it, and the store parameters `priority=` and `trusted=`.
    pub url: String,
    /// Lower is asked first; beats the URL's `priority=` and what the cache says of itself.
    pub priority: Option<u32>,
    /// Whether paths without a trusted signature are taken from it.
    pub trusted: bool,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Secret>,
    /// File that holds the token, read when the substituter is made and after a 401. Beats `token`.
    pub token_file: Option<PathBuf>,
}

impl SubstituterConfig {
    /// The token, from wherever it is; `name` is the substituter's for errors.
    pub(super) fn read_token(&self, name: &str) -> Result<Option<Secret>, SubstituterError> {
        let token = match &self.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| {
                    let path = path.display().to_string();
                    SubstituterError::Secrets {
                        what: "token file",
                        path,
                        source,
                    }
                })?;
                Some(Secret::new(text.trim()))
            }
            None => self.token.clone(),
        };
        match &token {
            Some(token) if credentials::bearer(token).is_none() => {
                Err(SubstituterError::Token(name.into()))
            }
            _ => Ok(token),
        }
    }
}

impl fmt::Debug for SubstituterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubstituterConfig")
            .field("url", &location::display(&self.url))
            .field("priority", &self.priority)
            .field("trusted", &self.trusted)
            .field("token", &self.token)
            .field("token_file", &self.token_file)
            .finish()
    }
}
