//! Which files a daemon needs. Rules go with what is there at the start, so a single file that is
//! replaced later, as editors and network managers do, is out of reach: [`Watched`] notices, and the
//! next daemon may read it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use narfs_mount::mounted_by_narfs;
use rustix::process::getppid;

use super::landlock::{Right, Ruleset};
use crate::config::Config;

/// Programs, libraries and certificates; where the system says how names become addresses; what the
/// machine has.
const DIRECTORIES: &[&str] = &[
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/nscd",
    "/var/run/nscd",
    "/var/lib/ca-certificates",
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
];
/// Files in directories that hold other things too. Most are looked at for each name that is to
/// become an address.
const FILES: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
];
/// The same, but what they say at the start is enough.
const FILES_OF_START: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/passwd",
    "/etc/group",
    "/etc/services",
    "/etc/protocols",
    "/etc/fuse.conf",
    "/dev/urandom",
    "/dev/random",
];
/// Where Nix keeps libraries. It is left alone where narfs serves it.
const NIX: &str = "/nix/store";
/// Variables that name files and directories with certificates and credentials.
const NAMED_BY: &[&str] = &[
    "NIX_SSL_CERT_FILE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// How often it is looked for files that were replaced.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Parts of a name, those of links included: more than the kernel follows.
const MAX_STEPS: usize = 1000;

/// What is needed.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// What is kept, and written.
    state_dir: PathBuf,
    /// Read, with all that is below.
    directories: Vec<PathBuf>,
    /// Read, now and later.
    files: Vec<PathBuf>,
    /// Read at the start.
    early: Vec<PathBuf>,
    /// What will be served, by its real name.
    mountpoint: Option<PathBuf>,
}

pub(super) fn needed(config: &Config, mountpoint: Option<&Path>) -> Needed {
    let mut needed = Needed {
        state_dir: config.state_dir.clone(),
        directories: DIRECTORIES.iter().map(PathBuf::from).collect(),
        files: FILES.iter().map(PathBuf::from).collect(),
        early: FILES_OF_START.iter().map(PathBuf::from).collect(),
        mountpoint: mountpoint.map(real_name),
    };
    if !mounted_by_narfs(Path::new(NIX)) {
        needed.directories.push(NIX.into());
    }
    // Whoever is to ask the mount is this program again.
    needed.early.extend(env::current_exe());
    needed.files.extend(config.netrc_file.clone());
    for cache in &config.caches {
        needed.files.extend(cache.token_file.clone());
        match cache.url.scheme() {
            "file" => needed.files.extend(cache.url.to_file_path()),
            "s3" => needed.files.extend(of_aws()),
            _ => {}
        }
    }
    let named = NAMED_BY.iter().filter_map(env::var_os);
    needed
        .files
        .extend(named.flat_map(|value| env::split_paths(&value).collect::<Vec<_>>()));
    let mountpoint = needed.mountpoint.as_deref();
    for paths in [
        &mut needed.directories,
        &mut needed.files,
        &mut needed.early,
    ] {
        paths.retain(|path| !leads_below(path, mountpoint));
    }
    needed
}

/// A mountpoint without symbolic links before its last part, which is not touched.
fn real_name(mountpoint: &Path) -> PathBuf {
    let real = |(parent, name): (&Path, &OsStr)| Some(parent.canonicalize().ok()?.join(name));
    let parts = mountpoint.parent().zip(mountpoint.file_name());
    parts.and_then(real).unwrap_or_else(|| mountpoint.into())
}

/// Whether a name leads to `mountpoint` or below, over symbolic links too: looking there, the daemon
/// would wait for itself.
fn leads_below(path: &Path, mountpoint: Option<&Path>) -> bool {
    let Some(mountpoint) = mountpoint else {
        return false;
    };
    let mut rest: Vec<_> = path.components().rev().map(own).collect();
    let mut at = PathBuf::from("/");
    for _ in 0..MAX_STEPS {
        let Some(part) = rest.pop() else {
            return false;
        };
        match &*part {
            part if part == "/" => at = "/".into(),
            part if part == ".." => drop(at.pop()),
            part => at.push(part),
        }
        if at == mountpoint {
            return true;
        }
        if let Ok(target) = std::fs::read_link(&at) {
            at.pop();
            rest.extend(target.components().rev().map(own));
        }
    }
    // A circle leads nowhere.
    false
}

fn own(part: Component<'_>) -> OsString {
    part.as_os_str().to_owned()
}

/// Where S3 clients look without being told.
fn of_aws() -> Vec<PathBuf> {
    let home = env::var_os("HOME").unwrap_or_default();
    let files = ["credentials", "config"].map(OsStr::new);
    let below = files.map(|name| Path::new(&home).join(".aws").join(name));
    below
        .into_iter()
        .filter(|path| path.is_absolute())
        .collect()
}

impl Needed {
    /// Allows what is needed, and nothing else from now on.
    ///
    /// # Errors
    /// When the kernel can't.
    pub fn restrict(&self) -> io::Result<Watched> {
        // What is not there can't be allowed. Whoever takes the directory says what is wrong with it.
        let mut directory = DirBuilder::new();
        let _ = directory
            .recursive(true)
            .mode(0o700)
            .create(&self.state_dir);
        let rules = Ruleset::new()?;
        rules.allow(&self.state_dir, Right::Keep)?;
        rules.allow(Path::new("/dev/null"), Right::Write)?;
        let read = self.directories.iter().chain(&self.early);
        for path in read.chain(&self.files) {
            rules.allow(path, Right::Read)?;
        }
        let watched = Watched::of(&self.files, self.mountpoint.as_deref());
        rules.enforce()?;
        Ok(watched)
    }
}

/// Which file a name leads to: device and number, if there is one.
type Identity = Option<(u64, u64)>;

/// Files that can be read as long as they are the same ones.
#[derive(Debug, Default)]
pub struct Watched {
    files: Vec<(PathBuf, Identity)>,
    /// What is below is not looked at.
    mountpoint: Option<PathBuf>,
}

impl Watched {
    fn of(files: &[PathBuf], mountpoint: Option<&Path>) -> Self {
        let known = files.iter().map(|path| (path.clone(), identity(path)));
        Self {
            files: known.collect(),
            mountpoint: mountpoint.map(Path::to_owned),
        }
    }

    /// Calls `tell` when one was replaced, until it returns false. Not without the process that
    /// started this one: nobody would start the next.
    pub fn watch(self, tell: impl Fn() -> bool + Send + 'static) {
        let starter = getppid();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(LOOK_EVERY);
                let Some(path) = self.replaced() else {
                    continue;
                };
                let shown = path.display();
                if getppid() != starter {
                    tracing::warn!(file = %shown, "replaced, and can't be read any more: nobody starts the next daemon");
                    return;
                }
                tracing::info!(file = %shown, "replaced; the next daemon reads it");
                if !tell() {
                    return;
                }
            }
        });
    }

    /// One in whose place another one is now, that can't be read from here. Looking is not forbidden.
    pub fn replaced(&self) -> Option<&Path> {
        let replaced = |(path, before): &&(PathBuf, Identity)| {
            if leads_below(path, self.mountpoint.as_deref()) {
                return false;
            }
            let now = identity(path);
            // Nobody who starts anew could read one that is gone either.
            now.is_some() && now != *before
        };
        self.files
            .iter()
            .find(replaced)
            .map(|(path, _)| path.as_path())
    }
}

fn identity(path: &Path) -> Identity {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_or_new_is_noticed_and_one_that_goes_or_changes_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let [stays, new] = ["stays", "new"].map(|name| directory.path().join(name));
        std::fs::write(&stays, "1").unwrap();
        let watched = Watched::of(&[stays.clone(), new.clone()], None);
        std::fs::write(&stays, "2").unwrap();
        assert_eq!(watched.replaced(), None);
        std::fs::write(&new, "3").unwrap();
        assert_eq!(watched.replaced(), Some(&*new));
        std::fs::rename(&new, &stays).unwrap();
        assert_eq!(watched.replaced(), Some(&*stays));
        std::fs::remove_file(&stays).unwrap();
        assert_eq!(watched.replaced(), None);
    }

    #[test]
    fn names_that_lead_into_the_mount_are_known_without_going_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        std::os::unix::fs::symlink("sub/../mount/x", at("link")).unwrap();
        std::os::unix::fs::symlink("circle", at("circle")).unwrap();
        std::os::unix::fs::symlink(at("link"), at("other")).unwrap();
        std::fs::create_dir(at("sub")).unwrap();
        let mount = at("mount");
        for inside in [
            "mount",
            "mount/a/b",
            "link",
            "link/c",
            "other",
            "sub/../other",
        ] {
            assert!(leads_below(&at(inside), Some(&mount)), "{inside}");
        }
        for outside in ["mountain", "sub", "circle", "sub/mount", "mount/.."] {
            let leads = leads_below(&at(outside), Some(&mount));
            assert_eq!(leads, outside == "mount/..", "{outside}");
        }
        assert!(!leads_below(&mount, None));
    }
}
