//! Containers that run, and snapshots mounted by themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use rustix::mount::{UnmountFlags, unmount};

use super::Containerd;
use crate::mounted::{alive, output, run, shell};

impl Containerd {
    /// `ctr run --detach`: a container that goes on.
    pub fn start_container(
        &self,
        image: &str,
        snapshotter: &str,
        arguments: &[&str],
    ) -> Container<'_> {
        let name = self.name();
        let flags = ["run", "--detach", "--null-io", "--snapshotter", snapshotter];
        let mut command = self.ctr(&flags);
        command.args([image, &name]).args(arguments);
        let output = output(command);
        self.assert_done(&output, &format!("{image} {arguments:?}"));
        let pid = self.pid(&name);
        Container {
            containerd: self,
            name,
            pid,
        }
    }

    fn pid(&self, name: &str) -> u32 {
        let table = run(self.ctr(&["tasks", "list"]));
        let mut rows = table.lines().map(|line| {
            let cells = line.split_whitespace();
            cells.collect::<Vec<_>>()
        });
        let row = rows.find(|row| row.first() == Some(&name));
        let row = row.unwrap_or_else(|| panic!("no task {name}:\n{table}"));
        row[1].parse().expect("a process number")
    }

    /// A view of a snapshot, mounted. (`ctr images mount` would do that in one, but knows no
    /// snapshotter other than overlayfs in 1.6, whatever it is told.)
    pub fn mount_view(&self, parent: &str, snapshotter: &str) -> Mounted<'_> {
        self.mounted("view", parent, snapshotter)
    }

    /// A new snapshot on top of another one, mounted.
    pub fn mount_new(&self, parent: &str, snapshotter: &str) -> Mounted<'_> {
        self.mounted("prepare", parent, snapshotter)
    }

    fn mounted(&self, verb: &str, parent: &str, snapshotter: &str) -> Mounted<'_> {
        let key = self.name();
        let at = self.path(&format!("mount-{key}"));
        fs::create_dir(&at).expect("a mountpoint");
        let shown = at.display().to_string();
        let snapshots = |words: &[&str]| {
            let mut command = self.ctr(&["snapshots", "--snapshotter", snapshotter]);
            command.args(words);
            command
        };
        // `ctr` leaves a view to the garbage collector, which may take it at once; the snapshots
        // that it shows are the image's, and stay.
        let mut script = None;
        for _ in 0..10 {
            run(snapshots(&[verb, &key, parent]));
            let mounts = output(snapshots(&["mounts", &shown, &key]));
            if mounts.status.success() {
                script = Some(String::from_utf8(mounts.stdout).expect("UTF-8"));
                break;
            }
        }
        run(shell(&script.expect("the snapshot stays"), &[]));
        Mounted {
            containerd: self,
            snapshotter: snapshotter.to_owned(),
            key,
            at,
        }
    }
}

/// A container that runs; dropped, it is killed and removed with its snapshot.
pub struct Container<'c> {
    containerd: &'c Containerd,
    pub name: String,
    /// Its first process, as the host numbers it.
    pub pid: u32,
}

impl Container<'_> {
    /// A path inside, as the host reaches it: through the container's own mounts.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let inner = path.strip_prefix("/").unwrap_or(path);
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(inner)
    }

    /// Runs something inside.
    pub fn exec(&self, words: &[&str]) -> Output {
        let exec = format!("{}-exec", self.containerd.name());
        let mut command = self.containerd.ctr(&["tasks", "exec", "--exec-id", &exec]);
        command.arg(&self.name).args(words);
        output(command)
    }

    /// Runs what has to succeed inside; what it printed.
    pub fn exec_well(&self, words: &[&str]) -> String {
        let output = self.exec(words);
        self.containerd
            .assert_done(&output, &format!("{words:?} inside"));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Whether its first process runs.
    pub fn runs(&self) -> bool {
        alive(self.pid)
    }

    /// Kills and removes it; fails where containerd does.
    pub fn remove(self) {
        let name = self.name.clone();
        let containerd = self.containerd;
        drop(self);
        let left = run(containerd.ctr(&["containers", "list", "--quiet"]));
        assert!(
            !left.lines().any(|line| line == name),
            "{name} is still there"
        );
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Whatever fails here is looked for where the test wants to know.
        let _ = output(
            self.containerd
                .ctr(&["tasks", "delete", "--force", &self.name]),
        );
        let _ = output(self.containerd.ctr(&["containers", "delete", &self.name]));
    }
}

/// A snapshot's file system; dropped, it is unmounted and the snapshot removed.
pub struct Mounted<'c> {
    containerd: &'c Containerd,
    snapshotter: String,
    /// Its snapshot.
    pub key: String,
    /// Where it is.
    pub at: PathBuf,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let remove = [
            "snapshots",
            "--snapshotter",
            &self.snapshotter,
            "remove",
            &self.key,
        ];
        let _ = output(self.containerd.ctr(&remove));
    }
}
