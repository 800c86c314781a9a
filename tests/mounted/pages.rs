//! What the kernel keeps of what containers read: each page once. Needs `cachestat`, which Linux has
//! since 6.5.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    corpus,
    gate::{mount, serve},
    mounted::{run, wait_until},
    truth,
};

const CONTAINERS: usize = 10;
/// Pages that may be kept, of the mount and of the files behind it, as a part of what was read.
const MOST: f64 = 1.1;

/// `struct cachestat_range` and `struct cachestat` of the kernel's `linux/mman.h`.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}
const SYS_CACHESTAT: libc::c_long = 451;

/// Bytes of a file's pages that the kernel keeps.
#[allow(unsafe_code)]
fn kept(file: &Path) -> u64 {
    let file = File::open(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let (all, mut stat) = (Range { offset: 0, len: 0 }, Stat::default());
    // SAFETY: the kernel reads the one structure and fills the other, which are laid out as it has them.
    let done = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const all,
            &raw mut stat,
            0u32,
        )
    };
    assert_eq!(
        done,
        0,
        "cachestat: {} (Linux 6.5 has it)",
        io::Error::last_os_error()
    );
    stat.cached * rustix::param::page_size() as u64
}

fn regular_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(regular_files(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}

/// An overlay, as a container has it, over `lower`; unmounted when dropped.
struct Overlay(tempfile::TempDir);

impl Overlay {
    fn over(lower: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["upper", "work", "merged"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let at = |name: &str| directory.path().join(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            at("upper"),
            at("work")
        );
        let mut command = Command::new("mount");
        run({
            command.args(["-t", "overlay", "overlay", "-o", &options, &at("merged")]);
            command
        });
        Self(directory)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(self.0.path().join("merged"))
            .status();
    }
}

#[test]
fn what_ten_containers_read_is_kept_once() {
    let server = serve("zstd");
    let mounted = mount(&server);
    let closure = truth::closure(&corpus::store_path("redis-server"));
    let paths: Vec<_> = closure
        .iter()
        .map(|name| mounted.at(name))
        .filter(|path| path.is_dir())
        .collect();
    let files: Vec<_> = paths.iter().flat_map(|path| regular_files(path)).collect();
    let size: u64 = files
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert!(size > 10_000_000, "{size}");
    for _ in 0..CONTAINERS {
        for path in &paths {
            let overlay = Overlay::over(path);
            for file in regular_files(&overlay.0.path().join("merged")) {
                io::copy(&mut File::open(&file).unwrap(), &mut io::sink()).unwrap();
            }
        }
    }
    let content = mounted.state_dir().join("content");
    let count = || {
        let behind: u64 = regular_files(&content).iter().map(|file| kept(file)).sum();
        let of_mount: u64 = files.iter().map(|file| kept(file)).sum();
        (of_mount, behind)
    };
    let (of_mount, behind) = count();
    eprintln!("{size} bytes read; kept at once: {of_mount} of the mount, {behind} behind it");
    assert!(
        of_mount >= size,
        "{of_mount} of {size}: the mount's own pages stay"
    );
    // Files are kept in pages, of which the last one is not full.
    let full = |bytes: u64| bytes.next_multiple_of(rustix::param::page_size() as u64);
    let size: u64 = files
        .iter()
        .map(|file| full(fs::metadata(file).unwrap().len()))
        .sum();
    wait_until("pages that are kept twice are given back", || {
        let (of_mount, behind) = count();
        eprintln!("{of_mount} of the mount, {behind} behind it");
        (of_mount + behind) as f64 <= size as f64 * MOST
    });
    // They are no loss: what is read anew comes from the disk.
    drop(mounted.narfs_output(&["check"]));
}
