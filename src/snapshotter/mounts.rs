//! How a snapshot is mounted: a bind mount, or one overlay over the layers below it.
//!
//! As containerd's own overlayfs snapshotter has it, so that its users see no difference; only that
//! a Nix layer is two lowers, its view above the mountpoints that the image has for it.

use std::path::{Path, PathBuf};

use super::wire::Mount;

/// What the kernel and the process it runs in need to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlay {
    /// `index=off`: two overlays may share a lower without the kernel calling it undefined.
    pub index_off: bool,
    /// `userxattr`: in a user namespace the kernel's own attributes can't be used.
    pub userxattr: bool,
}

impl Overlay {
    /// As it is here and now.
    pub fn of_this_system() -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self {
            index_off: Path::new("/sys/module/overlay/parameters/index").exists(),
            userxattr: !is_initial(&map),
        }
    }
}

/// Whether a `uid_map` is the one of the machine itself; where it can't be read, there are no
/// user namespaces.
fn is_initial(map: &str) -> bool {
    let fields: Vec<_> = map.split_whitespace().collect();
    fields.is_empty() || fields == ["0", "0", "4294967295"]
}

/// A snapshot's directories, and those below it with the top one first.
#[derive(Debug)]
pub enum Layers {
    /// Written to.
    Writable {
        /// Takes the changes.
        upper: PathBuf,
        /// Overlayfs's own.
        work: PathBuf,
        /// What is below.
        lowers: Vec<PathBuf>,
    },
    /// Read only.
    ReadOnly {
        /// Its own directory, which is empty.
        own: PathBuf,
        /// What is below.
        lowers: Vec<PathBuf>,
    },
}

impl Layers {
    /// The mounts. One is enough in every case. `data` are lowers in which overlayfs finds the content of files that
    /// say so, and nothing else.
    pub fn mounts(&self, overlay: Overlay, data: &[PathBuf]) -> Vec<Mount> {
        let mount = match self {
            Self::Writable { upper, lowers, .. } if lowers.is_empty() => bind(upper, "rw"),
            Self::Writable {
                upper,
                work,
                lowers,
            } => {
                let mut options = overlay.options();
                options.push(format!("workdir={}", work.display()));
                options.push(format!("upperdir={}", upper.display()));
                options.push(lowerdir(lowers, data));
                overlaid(options)
            }
            Self::ReadOnly { own, lowers } => match lowers.as_slice() {
                [] => bind(own, "ro"),
                [only] => bind(only, "ro"),
                lowers => {
                    let mut options = overlay.options();
                    options.push("ro".into());
                    options.push(lowerdir(lowers, data));
                    overlaid(options)
                }
            },
        };
        vec![mount]
    }
}

impl Overlay {
    fn options(self) -> Vec<String> {
        let index = self.index_off.then(|| "index=off".to_owned());
        let userxattr = self.userxattr.then(|| "userxattr".to_owned());
        index.into_iter().chain(userxattr).collect()
    }
}

fn lowerdir(lowers: &[PathBuf], data: &[PathBuf]) -> String {
    let lowers: Vec<_> = lowers
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let data = data.iter().map(|path| format!("::{}", path.display()));
    format!("lowerdir={}{}", lowers.join(":"), data.collect::<String>())
}

fn overlaid(options: Vec<String>) -> Mount {
    Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options,
    }
}

fn bind(source: &Path, access: &str) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec![access.into(), "rbind".into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Overlay = Overlay {
        index_off: true,
        userxattr: false,
    };

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    fn writable(lowers: &[&str]) -> Layers {
        Layers::Writable {
            upper: "/r/3/fs".into(),
            work: "/r/3/work".into(),
            lowers: paths(lowers),
        }
    }

    fn read_only(lowers: &[&str]) -> Layers {
        Layers::ReadOnly {
            own: "/r/3/fs".into(),
            lowers: paths(lowers),
        }
    }

    /// Type, source, options.
    fn shown(layers: &Layers, overlay: Overlay) -> String {
        let mounts = layers.mounts(overlay, &[]);
        assert_eq!(mounts.len(), 1);
        let Mount {
            r#type,
            source,
            target,
            options,
        } = &mounts[0];
        assert_eq!(target, "");
        format!("{type} {source} {}", options.join(","))
    }

    #[test]
    fn without_a_parent_it_is_bound() {
        assert_eq!(shown(&writable(&[]), HERE), "bind /r/3/fs rw,rbind");
        assert_eq!(shown(&read_only(&[]), HERE), "bind /r/3/fs ro,rbind");
    }

    #[test]
    fn over_parents_it_is_an_overlay() {
        assert_eq!(
            shown(&writable(&["/r/2/fs", "/r/1/fs"]), HERE),
            "overlay overlay index=off,workdir=/r/3/work,upperdir=/r/3/fs,lowerdir=/r/2/fs:/r/1/fs"
        );
        assert_eq!(
            shown(
                &writable(&["/r/1/fs"]),
                Overlay {
                    index_off: false,
                    userxattr: true
                }
            ),
            "overlay overlay userxattr,workdir=/r/3/work,upperdir=/r/3/fs,lowerdir=/r/1/fs"
        );
    }

    #[test]
    fn a_view_has_no_upper() {
        assert_eq!(
            shown(&read_only(&["/r/1/fs"]), HERE),
            "bind /r/1/fs ro,rbind"
        );
        assert_eq!(
            shown(&read_only(&["/r/mnt/views/s1", "/r/1/fs"]), HERE),
            "overlay overlay index=off,ro,lowerdir=/r/mnt/views/s1:/r/1/fs"
        );
    }

    #[test]
    fn data_only_lowers_come_last() {
        let data = paths(&["/r/native/files", "/r/mnt/store"]);
        let mounts = writable(&["/r/native/trees/1.1", "/r/mnt/views/s1"]).mounts(HERE, &data);
        assert_eq!(
            mounts[0].options.last().map(String::as_str),
            Some("lowerdir=/r/native/trees/1.1:/r/mnt/views/s1::/r/native/files::/r/mnt/store")
        );
    }

    #[test]
    fn a_user_namespace_is_known_by_its_map() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(is_initial(""));
        assert!(!is_initial("0 1000 1\n"));
        assert!(!is_initial("0 1000 1\n1 100000 65536\n"));
    }
}
