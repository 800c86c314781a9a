//! Which snapshots are Nix layers, and which store paths they bring.
//!
//! nix-snapshotter says so in annotations of the layer, which reach `Prepare` as labels: a number
//! of `containerd.io/snapshot/nix-store-path.N`, or one `containerd.io/snapshot/nix-closure`, the
//! store path of a closure-info directory, whose references are the closure.
//!
//! Not every client passes annotations on (`ctr images import` of containerd 1.6 does not). The
//! layer itself is telling, though: it is nothing but mountpoints, an empty directory or file for
//! each store path. So a layer without those labels is looked at when it is committed. In an
//! ordinary layer a store path has content; one whose paths are all empty is taken for a Nix layer
//! too, and its paths look the same when they come from a cache.

use std::{collections::BTreeSet, fs, io, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use tonic::Code;

use super::{error::code_of, record::Labels};
use crate::{
    nix::{StorePath, StorePathError},
    store::{ClosureReport, StoreError},
};

const MARK: &str = "containerd.io/snapshot/nix-layer";
const PATH_PREFIX: &str = "containerd.io/snapshot/nix-store-path.";
const CLOSURE: &str = "containerd.io/snapshot/nix-closure";
/// What containerd's unpackers tell of the snapshot that a layer will be committed as.
const REF: &str = "containerd.io/snapshot.ref";

/// How many failures a message spells out; containerd and kubelet print it on a line.
const SPELLED_OUT: usize = 3;

/// What a layer says that it brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Exactly these.
    Paths(Vec<StorePath>),
    /// Everything that this path refers to, without itself.
    ReferencesOf(StorePath),
}

/// Why a Nix layer can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A label that makes no sense.
    #[error("the label {label}={value:?} is no store path: {source}")]
    NoStorePath {
        /// Its key.
        label: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        source: StorePathError,
    },
    /// A path inside a store path.
    #[error("the label {label}={value:?} names a file in a store path, not the store path itself")]
    Inside {
        /// Its key.
        label: String,
        /// Its value.
        value: String,
    },
    /// The mark alone.
    #[error(
        "the layer is marked with {MARK}, but has neither a label {CLOSURE} nor one {PATH_PREFIX}0 to say which store \
         paths it brings; build the image anew"
    )]
    NoPaths,
    /// Some paths could not be admitted.
    #[error(
        "{} of {} store paths of the layer can't be had: {}",
        .failed.len(), .wanted, spelled_out(.failed)
    )]
    NotAdmitted {
        /// How many there were.
        wanted: usize,
        /// Each that failed.
        failed: Vec<(StorePath, Arc<StoreError>)>,
    },
    /// It took too long.
    #[error(
        "the layer's store paths were not all found within {seconds} s ({asked}); the caches are slow or do not answer; \
         what was found is kept, try again"
    )]
    TimedOut {
        /// The bound.
        seconds: u64,
        /// What the layer asked for.
        asked: String,
    },
}

impl LayerError {
    /// What containerd is told. Of several failures the lasting ones count: trying again does not
    /// help while there is one.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NoStorePath { .. } | Self::Inside { .. } | Self::NoPaths => Code::InvalidArgument,
            Self::TimedOut { .. } => Code::Unavailable,
            Self::NotAdmitted { failed, .. } => {
                worst(failed).map_or(Code::Internal, |(_, e)| code_of(e))
            }
        }
    }
}

/// How much a failure is in the way: lower is worse.
fn rank(error: &StoreError) -> u8 {
    match code_of(error) {
        Code::FailedPrecondition => 0,
        Code::NotFound => 1,
        Code::Unavailable => 3,
        _ => 2,
    }
}

fn worst(failed: &[(StorePath, Arc<StoreError>)]) -> Option<&(StorePath, Arc<StoreError>)> {
    failed.iter().min_by_key(|(_, error)| rank(error))
}

fn spelled_out(failed: &[(StorePath, Arc<StoreError>)]) -> String {
    let mut by_rank: Vec<_> = failed.iter().collect();
    by_rank.sort_by_key(|(_, error)| rank(error));
    let told = by_rank.iter().take(SPELLED_OUT).map(|(path, error)| {
        let text = error.to_string();
        // Nearly every message names its path; here each has to.
        match text.contains(&path.hash().to_string()) {
            true => text,
            false => format!("{path}: {text}"),
        }
    });
    let mut text = told.collect::<Vec<_>>().join("; ");
    if failed.len() > SPELLED_OUT {
        text += &format!("; and {} more", failed.len() - SPELLED_OUT);
    }
    text
}

/// Whether an active snapshot is one that a layer is unpacked into, by its labels. Its mounts are
/// without its own paths then: the layer's mountpoints are unpacked where those would be. Any
/// other is a container's own (`ctr run --snapshotter-label …`), which wants to see them.
pub fn is_unpacked_into(labels: &Labels) -> bool {
    labels.contains_key(REF) || labels.get(MARK).is_some_and(|value| value == "true")
}

impl Wanted {
    /// What the labels say; `None` if it is no Nix layer by them.
    ///
    /// # Errors
    /// Labels that make no sense, by their names.
    pub fn from_labels(labels: &Labels) -> Result<Option<Self>, LayerError> {
        let mut paths = BTreeSet::new();
        for (label, value) in labels.range(PATH_PREFIX.to_owned()..) {
            if !label.starts_with(PATH_PREFIX) {
                break;
            }
            paths.insert(store_path(label, value)?);
        }
        let marked = labels.get(MARK).is_some_and(|value| value == "true");
        match labels.get(CLOSURE) {
            Some(value) => Ok(Some(Self::ReferencesOf(store_path(CLOSURE, value)?))),
            None if !paths.is_empty() => Ok(Some(Self::Paths(paths.into_iter().collect()))),
            None if marked => Err(LayerError::NoPaths),
            None => Ok(None),
        }
    }

    /// What a layer's mountpoints say, see the module; `None` if they are none. Touches the disk.
    ///
    /// # Errors
    /// Of the system.
    pub fn from_directory(root: &Path) -> io::Result<Option<Self>> {
        for dir in ["nix", "nix/store"] {
            match fs::symlink_metadata(root.join(dir)) {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(root.join("nix/store"))? {
            let entry = entry?;
            let Ok(path) = StorePath::from_bytes(entry.file_name().as_bytes()) else {
                return Ok(None);
            };
            let meta = entry.metadata()?;
            let empty = match meta.is_dir() {
                true => fs::read_dir(entry.path())?.next().is_none(),
                false => meta.is_file() && meta.len() == 0,
            };
            if !empty {
                return Ok(None);
            }
            paths.push(path);
        }
        paths.sort();
        Ok((!paths.is_empty()).then_some(Self::Paths(paths)))
    }

    /// What is asked for, in a few words.
    pub fn describe(&self) -> String {
        match self {
            Self::Paths(paths) => match paths.as_slice() {
                [path] => path.absolute(),
                paths => format!("{} store paths", paths.len()),
            },
            Self::ReferencesOf(path) => format!("the closure of {}", path.absolute()),
        }
    }

    /// The layer's own paths, when all of them were admitted.
    ///
    /// # Errors
    /// [`LayerError::NotAdmitted`] with those that were not.
    pub fn own(&self, report: ClosureReport) -> Result<Vec<StorePath>, LayerError> {
        if !report.failed.is_empty() {
            return Err(LayerError::NotAdmitted {
                wanted: report.admitted.len() + report.failed.len(),
                failed: report.failed,
            });
        }
        let mut own = match self {
            Self::Paths(paths) => paths.clone(),
            Self::ReferencesOf(root) => {
                let mut own = report.admitted;
                own.retain(|path| path != root);
                own
            }
        };
        own.sort();
        own.dedup();
        Ok(own)
    }
}

/// The store path that a label holds.
fn store_path(label: &str, value: &str) -> Result<StorePath, LayerError> {
    let no_store_path = |source| LayerError::NoStorePath {
        label: label.into(),
        value: value.into(),
        source,
    };
    if !value.starts_with('/') {
        return Err(no_store_path(StorePathError::NotInStore(value.into())));
    }
    let (path, rest) = StorePath::parse_with_rest(value).map_err(no_store_path)?;
    match rest.is_empty() {
        true => Ok(path),
        false => Err(LayerError::Inside {
            label: label.into(),
            value: value.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "2j8qw9i2q1p6cmli6976v4wi0sw9r4p5-python3-3.11";
    const B: &str = "3j8qw9i2q1p6cmli6976v4wi0sw9r4p5-glibc";

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    fn parsed(name: &str) -> StorePath {
        StorePath::parse(name).unwrap()
    }

    #[test]
    fn both_schemes_are_read() {
        let (a, b) = (format!("/nix/store/{A}"), format!("/nix/store/{B}"));
        let many = labels(&[
            (MARK, "true"),
            ("containerd.io/snapshot/nix-store-path.0", &a),
            ("containerd.io/snapshot/nix-store-path.10", &b),
            ("containerd.io/snapshot/nix-store-path.2", &a),
            ("containerd.io/snapshot/other", "x"),
        ]);
        let want = Wanted::Paths(vec![parsed(A), parsed(B)]);
        assert_eq!(Wanted::from_labels(&many).unwrap(), Some(want));
        let closure = labels(&[(MARK, "true"), (CLOSURE, &a)]);
        let want = Wanted::ReferencesOf(parsed(A));
        assert_eq!(Wanted::from_labels(&closure).unwrap(), Some(want));
        assert_eq!(Wanted::from_labels(&labels(&[("a", "b")])).unwrap(), None);
        assert_eq!(
            Wanted::from_labels(&labels(&[(MARK, "false")])).unwrap(),
            None
        );
    }

    #[test]
    fn bad_labels_are_named() {
        let zero = "containerd.io/snapshot/nix-store-path.0";
        let inside = format!("/nix/store/{A}/bin");
        for (pairs, part) in [
            (vec![(MARK, "true")], "neither a label"),
            (
                vec![(zero, "/etc/passwd")],
                "nix-store-path.0=\"/etc/passwd\"",
            ),
            (vec![(zero, A)], "is not in /nix/store"),
            (vec![(zero, "/nix/store/x")], "32 digits"),
            (vec![(zero, &*inside)], "names a file in a store path"),
            (vec![(CLOSURE, "")], "nix-closure=\"\""),
        ] {
            let error = Wanted::from_labels(&labels(&pairs)).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn mountpoints_alone_make_a_nix_layer() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let found = || Wanted::from_directory(root).unwrap();
        assert_eq!(found(), None);
        fs::create_dir_all(root.join("nix/store")).unwrap();
        assert_eq!(found(), None, "an empty store");
        fs::create_dir(root.join("nix/store").join(A)).unwrap();
        fs::write(root.join("nix/store").join(B), "").unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        assert_eq!(found(), Some(Wanted::Paths(vec![parsed(A), parsed(B)])));
        fs::write(root.join("nix/store").join(B), "x").unwrap();
        assert_eq!(found(), None, "a file with content");
        fs::write(root.join("nix/store").join(B), "").unwrap();
        fs::create_dir(root.join("nix/store").join(A).join("bin")).unwrap();
        assert_eq!(found(), None, "a directory with content");
        fs::remove_dir(root.join("nix/store").join(A).join("bin")).unwrap();
        std::os::unix::fs::symlink("x", root.join("nix/store/link")).unwrap();
        assert_eq!(found(), None, "something else");
        fs::remove_file(root.join("nix/store/link")).unwrap();
        fs::rename(root.join("nix"), root.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", root.join("nix")).unwrap();
        assert_eq!(found(), None, "a link is not followed");
    }

    #[test]
    fn the_closure_leaves_out_what_only_lists_it() {
        let report = |failed| ClosureReport {
            admitted: vec![parsed(B), parsed(A)],
            failed,
        };
        let wanted = Wanted::ReferencesOf(parsed(B));
        assert_eq!(wanted.own(report(vec![])).unwrap(), [parsed(A)]);
        let absent = |path: StorePath| StoreError::Absent {
            path,
            caches: "https://a/".into(),
        };
        let gone = vec![(parsed(A), Arc::new(absent(parsed(A)))); 5];
        let error = wanted.own(report(gone)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("5 of 7 store paths of the layer can't be had: "),
            "{text}"
        );
        assert!(text.contains(A) && text.contains("https://a/") && text.ends_with("; and 2 more"));
        assert_eq!(error.code(), Code::NotFound);
        let mixed = vec![
            (parsed(A), Arc::new(StoreError::Stopping)),
            (parsed(B), Arc::new(absent(parsed(B)))),
        ];
        let error = wanted.own(report(mixed)).unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "the lasting one counts");
    }
}
