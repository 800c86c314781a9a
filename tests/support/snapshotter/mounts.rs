//! What the snapshotter returns, mounted as containerd mounts it: options that name flags are
//! flags, the others are the file system's; several mounts one over the other; and the lowers of an
//! overlay relative to a common directory where their text would not fit into the page that
//! mount(2) takes.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering::Relaxed,
};

use narfs::snapshotter::wire::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::Snapshotter;

/// What mount(2) takes of options, less what containerd leaves to be safe: a page and 512 bytes.
const LONGEST: usize = 4096 - 512;

/// A mounted snapshot; unmounted when it is dropped.
pub struct Root(PathBuf);

impl Root {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// What a file in it holds.
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        let at = self.at(path);
        fs::read_to_string(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let mounted = unmount(&self.0, UnmountFlags::empty());
        // Busy in a failing test; and a panic here would hide it.
        if mounted.is_err() {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
}

impl Snapshotter {
    /// Mounts what a call returned.
    pub fn mount(&self, mounts: &[Mount]) -> Root {
        assert!(!mounts.is_empty(), "no mounts");
        let n = self.roots.fetch_add(1, Relaxed);
        let at = self.directory.path().join(format!("rootfs-{n}"));
        fs::create_dir(&at).expect("a mountpoint");
        for one in mounts {
            assert_eq!(one.target, "", "no client before containerd 1.7 knows it");
            mount_one(one, &at);
        }
        Root(at)
    }

    /// Prepares and mounts.
    pub fn prepared(&self, key: &str, parent: &str) -> Root {
        let mounts = self.prepare(key, parent, super::Labels::new());
        self.mount(&mounts.unwrap_or_else(|e| panic!("Prepare {key} on {parent:?}: {e}")))
    }

    /// Makes a view and mounts it.
    pub fn viewed(&self, key: &str, parent: &str) -> Root {
        let mounts = self.view(key, parent, super::Labels::new());
        self.mount(&mounts.unwrap_or_else(|e| panic!("View {key} on {parent:?}: {e}")))
    }
}

fn mount_one(one: &Mount, at: &Path) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    let mut recursive = false;
    for option in &one.options {
        match option.as_str() {
            "bind" => flags |= MountFlags::BIND,
            "rbind" => {
                flags |= MountFlags::BIND;
                recursive = true;
            }
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => flags -= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            other => data.push(other.to_owned()),
        }
    }
    let fail = |e: rustix::io::Errno| panic!("{one:?} on {}: {e}", at.display());
    if flags.contains(MountFlags::BIND) {
        assert!(data.is_empty(), "a bind mount has no data: {one:?}");
        let bound = match recursive {
            true => rustix::mount::mount_bind_recursive(&one.source, at),
            false => rustix::mount::mount_bind(&one.source, at),
        };
        bound.unwrap_or_else(fail);
        if flags.contains(MountFlags::RDONLY) {
            mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap_or_else(fail);
        }
        return;
    }
    let text = data.join(",");
    if text.len() < LONGEST {
        let data = CString::new(text).expect("no NUL");
        mount(&*one.source, at, &*one.r#type, flags, data.as_c_str()).unwrap_or_else(fail);
    } else {
        mount_compact(one, &data, flags, at);
    }
}

/// Mounts from inside the directory that all lowers have in common. mount(8) does it: a directory
/// is a process's own.
fn mount_compact(one: &Mount, data: &[String], flags: MountFlags, at: &Path) {
    let lowers = lowers(one);
    let first = lowers[0].to_str().expect("UTF-8");
    let common = lowers.iter().fold(first, |common, lower| {
        let lower = lower.to_str().expect("UTF-8");
        let same = common
            .bytes()
            .zip(lower.bytes())
            .take_while(|(a, b)| a == b);
        &common[..same.count()]
    });
    let common = Path::new(common).parent().expect("absolute");
    let relative = lowers.iter().map(|lower| {
        let relative = lower.strip_prefix(common).expect("common");
        relative.to_str().expect("UTF-8").to_owned()
    });
    let lowerdir = format!("lowerdir={}", relative.collect::<Vec<_>>().join(":"));
    let others = data.iter().filter(|o| !o.starts_with("lowerdir="));
    let mut options: Vec<_> = others.cloned().chain([lowerdir]).collect();
    if flags.contains(MountFlags::RDONLY) {
        options.push("ro".into());
    }
    let options = options.join(",");
    assert!(options.len() < 4096, "containerd can't mount it: {options}");
    let output = Command::new("mount")
        .current_dir(common)
        .env("LIBMOUNT_FORCE_MOUNT2", "always")
        .args(["-c", "-t", &one.r#type, "-o", &options, &one.source])
        .arg(at)
        .output()
        .expect("mount(8) is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options}: {said}");
}

/// The lower directories of an overlay, the top one first.
pub fn lowers(mount: &Mount) -> Vec<PathBuf> {
    let lowers = option(mount, "lowerdir").unwrap_or_else(|| panic!("no lowers: {mount:?}"));
    lowers.split(':').map(PathBuf::from).collect()
}

/// The value of an option.
pub fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    let option = |text: &'a String| text.strip_prefix(name)?.strip_prefix('=');
    mount.options.iter().find_map(option)
}

/// Mountpoints below a directory, the last mounted first.
pub(super) fn below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let at = |line: &str| Some(PathBuf::from(line.split(' ').nth(1)?));
    let mut found: Vec<_> = table
        .lines()
        .filter_map(at)
        .filter(|path| path.starts_with(directory))
        .collect();
    found.reverse();
    found
}

/// Ends the connection of a FUSE mount, without touching the mount, which could hang.
pub(super) fn abort(mountpoint: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mountpoint = mountpoint.to_string_lossy();
    for line in table.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        if fields.get(4) == Some(&&*mountpoint)
            && let Some(minor) = fields[2].split(':').nth(1)
        {
            // Where the control file system is not mounted, the mount goes when its users do.
            let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        }
    }
}
