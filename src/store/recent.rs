//! The last errors of store paths, for people who look.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use super::path::LastError;
use crate::nix::StorePath;

/// So many are remembered: a screenful.
const REMEMBERED: usize = 32;

/// The last errors, one for each path. Lock: a leaf, taken when a path fails.
#[derive(Default)]
pub(super) struct RecentErrors(Mutex<VecDeque<(StorePath, LastError)>>);

impl RecentErrors {
    /// A path failed.
    pub fn add(&self, path: &StorePath, error: LastError) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| known != path);
        all.truncate(REMEMBERED - 1);
        all.push_front((path.clone(), error));
    }

    /// The newest first.
    pub fn all(&self) -> Vec<(StorePath, LastError)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_error_of_a_path_counts_and_old_ones_go() {
        let recent = RecentErrors::default();
        let path = |n: usize| StorePath::parse(&format!("{}-{n}", "0".repeat(32))).unwrap();
        let error = |at| LastError {
            message: "broken".into(),
            at,
            substituter: None,
        };
        for n in 0..40 {
            recent.add(&path(n), error(n as u64));
        }
        recent.add(&path(39), error(99));
        let all = recent.all();
        assert_eq!(all.len(), REMEMBERED);
        assert_eq!(all[0].1.at, 99);
        assert_eq!(all[1].1.at, 38);
    }
}
