//! What a daemon under the mount helper may still do to the machine: little, should the bytes of a
//! cache ever take it over.
//!
//! ```text
//! landlock.rs  which files      seccomp.rs  which system calls
//! files.rs     which files it needs, and whether somebody replaced one of them
//! ```
//!
//! Capabilities are the helper's to take away, before the daemon's program runs. What is here holds
//! for threads that are started later, so it comes before there is a second one, and before the log.

mod files;
mod landlock;
mod seccomp;

use std::path::Path;

pub use files::Watched;

use crate::config::Config;

/// What holds for this process.
#[derive(Debug)]
pub struct Confined {
    /// Single files that were allowed; their replacements are not.
    pub watched: Watched,
    /// What the kernel does not offer, in words.
    pub lacking: Vec<String>,
}

/// Confines this process, which has one thread and never mounts, for good. `mountpoint` is what it
/// will serve: nothing there is touched.
pub fn confine(config: &Config, mountpoint: Option<&Path>) -> Confined {
    let mut lacking = Vec::new();
    // The helper has done so; by hand nobody has.
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        lacking.push(format!("no_new_privs: {error}"));
    }
    let files = files::needed(config, mountpoint);
    let watched = match files.restrict() {
        Ok(watched) => watched,
        Err(error) => {
            lacking.push(format!("landlock: {error}"));
            Watched::default()
        }
    };
    if let Err(error) = seccomp::enforce() {
        lacking.push(format!("seccomp: {error}"));
    }
    Confined { watched, lacking }
}

impl Confined {
    /// Says in the log how far it goes.
    pub fn tell(&self) {
        match self.lacking.is_empty() {
            true => tracing::debug!("confined to its own files"),
            false => tracing::warn!(
                lacking = self.lacking.join("; "),
                "not confined as far as `confine` says"
            ),
        }
    }
}
