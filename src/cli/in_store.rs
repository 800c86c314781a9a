//! Finding files by path inside the store, over symbolic links, without a mount.

use std::{collections::VecDeque, sync::Arc};

use super::{Exit, Failure, StoreFile};
use crate::{
    daemon::store_failure,
    nix::{StorePath, store_path::STORE_DIR},
    store::{Path, Store},
    tree::{EntryIndex, Node},
};

/// Most symbolic links that one lookup follows: as many as Linux does (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A file, directory or link of a store path.
#[derive(Clone)]
pub struct Place {
    /// The store path it lies in.
    pub path: Arc<Path>,
    /// Where.
    pub entry: EntryIndex,
}

impl Place {
    fn root_of(path: Arc<Path>) -> Self {
        Self {
            path,
            entry: EntryIndex(0),
        }
    }

    /// The directory it lies in; `None` for the store itself.
    fn parent(&self) -> Option<Self> {
        let entry = match self.entry.0 {
            0 => return None,
            _ => self.path.tree.parent(self.entry),
        };
        Some(Self {
            path: self.path.clone(),
            entry,
        })
    }

    /// What it is.
    pub fn node(&self) -> Option<Node<'_>> {
        self.path.tree.node(self.entry)
    }

    /// Its path, absolute.
    pub fn absolute(&self) -> String {
        let inside = self.path.tree.path_of(self.entry);
        let inside = String::from_utf8_lossy(&inside);
        match inside.is_empty() {
            true => self.path.store_path.absolute(),
            false => format!("{}/{inside}", self.path.store_path.absolute()),
        }
    }
}

/// Finds `file`; links on the way are followed, also into other store paths, the last one only
/// with `follow_last`.
///
/// # Errors
/// When there is no such file, a link leads out of the store or in a circle, or a store path can't
/// be had.
pub async fn find(store: &Store, file: &StoreFile, follow_last: bool) -> Result<Place, Failure> {
    let mut search = Search {
        asked: file.absolute(),
        at: None,
        left: VecDeque::new(),
        links: 0,
    };
    search
        .left
        .push_back(file.store_path.to_string().into_bytes());
    search.left.extend(components(file.inside.as_bytes()));
    search.run(store, follow_last).await
}

struct Search {
    /// What was asked for, for messages.
    asked: String,
    /// Where it is; `None` for the store itself.
    at: Option<Place>,
    /// Names still to be looked up.
    left: VecDeque<Vec<u8>>,
    links: usize,
}

impl Search {
    async fn run(mut self, store: &Store, follow_last: bool) -> Result<Place, Failure> {
        while let Some(name) = self.left.pop_front() {
            if name == b".." {
                let Some(place) = self.at.take() else {
                    return Err(self.outside(".."));
                };
                self.at = place.parent();
                continue;
            }
            let place = match self.at.take() {
                None => self.store_path(store, &name).await?,
                Some(directory) => self.child(&directory, &name)?,
            };
            if let Some(Node::Symlink { target }) = place.node()
                && (follow_last || !self.left.is_empty())
            {
                let target = target.to_vec();
                self.follow(&place, &target)?;
                continue;
            }
            self.at = Some(place);
        }
        match self.at.take() {
            Some(place) => Ok(place),
            None => Err(self.outside(STORE_DIR)),
        }
    }

    async fn store_path(&self, store: &Store, name: &[u8]) -> Result<Place, Failure> {
        let path = StorePath::from_bytes(name).map_err(|e| {
            self.failure(format!(
                "it leads to {STORE_DIR}/{}, which is no store path",
                text(name)
            ))
            .because(&e)
        })?;
        store
            .admit(&path)
            .await
            .map(Place::root_of)
            .map_err(|e| store_failure(&e))
    }

    fn child(&self, directory: &Place, name: &[u8]) -> Result<Place, Failure> {
        if !matches!(directory.node(), Some(Node::Directory { .. })) {
            return Err(self.failure(format!("{} is no directory", directory.absolute())));
        }
        let entry = directory.path.tree.lookup(directory.entry, name);
        let entry = entry.ok_or_else(|| {
            self.failure(format!("{} has no {}", directory.absolute(), text(name)))
        })?;
        Ok(Place {
            path: directory.path.clone(),
            entry,
        })
    }

    fn follow(&mut self, link: &Place, target: &[u8]) -> Result<(), Failure> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(self.failure(format!(
                "more than {MAX_LINKS} symbolic links, the last one {}",
                link.absolute()
            )));
        }
        let inside = match target.strip_prefix(STORE_DIR.as_bytes()) {
            Some(rest) if rest.first() == Some(&b'/') => {
                self.at = None;
                rest
            }
            _ if target.first() == Some(&b'/') => {
                return Err(self.outside(&format!("{} -> {}", link.absolute(), text(target))));
            }
            _ => {
                self.at = link.parent();
                target
            }
        };
        for name in components(inside).into_iter().rev() {
            self.left.push_front(name);
        }
        Ok(())
    }

    fn failure(&self, why: String) -> Failure {
        Failure::new(
            Exit::NotFound,
            format!("{} cannot be found: {why}", self.asked),
        )
    }

    fn outside(&self, by: &str) -> Failure {
        self.failure(format!("it leads out of the store, by {by}"))
    }
}

fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let real = |name: &&[u8]| !name.is_empty() && *name != b".";
    path.split(|b| *b == b'/')
        .filter(real)
        .map(<[u8]>::to_vec)
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
