//! What a containerd leaves on the machine.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::mounted::alive;

/// Takes away everything that a containerd left on the machine: its processes, mounts, runc's
/// state and control groups.
pub fn remove(directory: &Path, socket: &Path, namespace: &str) {
    // A failing test may have left anything behind; and a panic here would hide it.
    let mine = containers_of(&directory.join("state"));
    for _ in 0..3 {
        for pid in processes(socket) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while processes(socket).into_iter().any(alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    for point in mounts_below(directory).into_iter().rev() {
        let _ = unmount(point, UnmountFlags::DETACH);
    }
    let states = Path::new("/run/containerd/runc");
    for (namespace, name) in &mine {
        let _ = fs::remove_dir_all(states.join(namespace).join(name));
    }
    let _ = fs::remove_dir(states.join(namespace));
    remove_cgroups(namespace, &mine);
}

/// Shims that speak to this socket, and what they run.
fn processes(socket: &Path) -> Vec<u32> {
    let address = socket.display().to_string();
    let mut found = Vec::new();
    for pid in numbers_in(Path::new("/proc")) {
        // The command line of a process that waits for a page of it can't be read; its name can.
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !name.starts_with(b"containerd-shim") {
            continue;
        }
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let shim = words
            .next()
            .is_some_and(|word| word.ends_with(b"containerd-shim-runc-v2"));
        if shim && words.any(|word| word == address.as_bytes()) {
            found.extend(children(pid));
            found.push(pid);
        }
    }
    found
}

/// Lines of the kernel's table of mounts that name something below a directory.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").expect("the kernel's table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    let points = points.map(PathBuf::from);
    points
        .filter(|point| point.starts_with(directory))
        .collect()
}

fn numbers_in(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Processes that this one started.
fn children(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in numbers_in(&PathBuf::from(format!("/proc/{of}/task"))) {
        let text = fs::read_to_string(format!("/proc/{of}/task/{thread}/children"));
        let text = text.unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

/// Namespace and name of each container that has or had a task, by the bundles of the runtime.
fn containers_of(state: &Path) -> Vec<(String, String)> {
    let list = |directory: &Path| -> Vec<String> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
            other => other.into_iter().flatten().flatten(),
        };
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.collect()
    };
    let tasks = state.join("io.containerd.runtime.v2.task");
    let mut found = Vec::new();
    for namespace in list(&tasks) {
        let names = list(&tasks.join(&namespace));
        found.extend(names.into_iter().map(|name| (namespace.clone(), name)));
    }
    found
}

/// Removes the control groups of containers that are gone; those of version 1 have a tree for each
/// controller, those of version 2 one.
fn remove_cgroups(namespace: &str, containers: &[(String, String)]) {
    let root = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(root).into_iter().flatten().flatten();
    let mut trees: Vec<PathBuf> = trees.map(|entry| entry.path()).collect();
    trees.push(root.to_owned());
    for tree in trees {
        for (namespace, name) in containers {
            let _ = fs::remove_dir(tree.join(namespace).join(name));
        }
        let left = fs::read_dir(tree.join(namespace))
            .into_iter()
            .flatten()
            .flatten();
        for entry in left {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(tree.join(namespace));
    }
}
