//! Looking through the copies: what the disk changed of one is found, and mended in its place.
//!
//! A copy is compared with what was fetched, at the rate of the scrub. It is written to where it differs, since a container
//! that opened a file keeps reading that very one; a copy that can't be mended goes, and containers read the mount. What
//! is not here whole any more can't be compared, and the small files that lie in a tree itself are not.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use super::{Native, write};
use crate::{
    nix::StorePath,
    store::Path as Known,
    tree::{EntryIndex, Node},
};

/// Rest between two passes over all copies.
const BETWEEN_PASSES: Duration = Duration::from_secs(60);
/// How often it is looked whether the snapshotter is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Native {
    /// Looks through the copies from now on, as long as the snapshotter lives, so many bytes a second; with 0 not at all.
    pub fn scrub(self: &Arc<Self>, rate: u64) {
        if rate == 0 || !self.on {
            return;
        }
        let native = Arc::downgrade(self);
        let thread = thread::Builder::new().name("narfs-copies".into());
        if let Err(error) = thread.spawn(move || while pass(&native, rate) {}) {
            tracing::warn!(%error, "native files are not looked through");
        }
    }

    /// Mends the files of a copy that are not what was fetched; how many those were.
    fn mend(&self, name: &str, rate: u64) -> io::Result<u64> {
        let layers = self
            .state()
            .copies
            .get(name)
            .map(|copy| copy.layers.clone());
        let Some(layer) = layers.as_ref().and_then(|layers| layers.first()) else {
            return Ok(0);
        };
        let Ok(path) = StorePath::parse(name) else {
            return Ok(0);
        };
        let admitted = self.store.runtime().block_on(self.store.admit(&path));
        let Some(known) = admitted.ok().filter(|known| self.store.is_whole(known)) else {
            return Ok(0);
        };
        let mut mended = 0;
        let mut left = vec![(EntryIndex::ROOT, self.files(*layer).join(name))];
        while let Some((entry, at)) = left.pop() {
            match known.tree.node(entry) {
                Some(Node::Directory { children }) => left.extend(
                    children
                        .map(EntryIndex)
                        .map(|child| (child, at.join(write::named(&known, child)))),
                ),
                Some(Node::Regular { size, .. }) if write::is_apart(size) => {
                    let was_damaged = self.mend_file(&known, entry, size, &at, rate)?;
                    mended += u64::from(was_damaged);
                }
                _ => {}
            }
        }
        Ok(mended)
    }

    /// Whether a file of a copy had to be mended.
    fn mend_file(
        &self,
        known: &Arc<Known>,
        entry: EntryIndex,
        size: u64,
        copy: &Path,
        rate: u64,
    ) -> io::Result<bool> {
        let file = match File::open(copy) {
            Ok(file) => file,
            // It went meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // Not before it has to be: what is run can't be opened so.
        let writable = || OpenOptions::new().write(true).open(copy);
        let mut mended = None;
        if file.metadata()?.len() != size {
            mended.insert(writable()?).set_len(size)?;
        }
        let mut at = 0;
        while at < size {
            let wanted = write::STEP.min(size - at);
            let read = self.store.read_file(known, entry, at, wanted as u32);
            let right = match self.store.runtime().block_on(read) {
                Ok(right) if !right.is_empty() => right,
                // It can't be told.
                _ => break,
            };
            let mut bytes = vec![0; right.len()];
            if file.read_exact_at(&mut bytes, at).is_err() || bytes != right {
                let to = match mended.take() {
                    Some(to) => to,
                    None => writable()?,
                };
                to.write_all_at(&right, at)?;
                mended = Some(to);
            }
            at += right.len() as u64;
            thread::sleep(Duration::from_secs_f64(right.len() as f64 / rate as f64));
        }
        if let Some(to) = &mended {
            to.sync_all()?;
            write::dated(copy)?;
            let (path, file) = (&known.store_path, copy.display());
            tracing::warn!(%path, %file, "a native file was not what was fetched, and is again");
        }
        Ok(mended.is_some())
    }
}

/// Looks through everything once; whether the snapshotter is still there.
fn pass(native: &Weak<Native>, rate: u64) -> bool {
    let names: Vec<String> = match native.upgrade() {
        Some(native) => native.state().copies.keys().cloned().collect(),
        None => return false,
    };
    for name in names {
        let Some(native) = native.upgrade() else {
            return false;
        };
        match native.mend(&name, rate) {
            Ok(mended) => drop(native.mended.fetch_add(mended, Relaxed)),
            Err(error) => {
                tracing::warn!(path = %name, %error, "a native file can't be compared or mended; it goes, and containers read the mount");
                if let Err(error) = native.drop_copy(&name) {
                    tracing::warn!(%error, "native files can't be deleted");
                }
            }
        }
    }
    for _ in 0..BETWEEN_PASSES.as_millis() / LOOK_EVERY.as_millis() {
        if native.strong_count() == 0 {
            return false;
        }
        thread::sleep(LOOK_EVERY);
    }
    true
}
