//! What programs see of a mount apart from bytes: attributes, `statfs`, inode numbers, the hidden
//! directory, and that nothing can be written; and that the usual tools work on it.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

use crate::{
    corpus,
    mounted::{Mounted, Setup, run, shell},
    snapshot::{Entry, assert_same, bytes, files, hash, snapshot, visit},
    truth,
};

fn mount() -> (Mounted, PathBuf) {
    let url = format!("file://{}", corpus::cache("zstd").display());
    let mounted = Mounted::start(Setup::new(url, corpus::public_key()));
    (mounted, corpus::store_path("redis-server"))
}

fn a_file(root: &Path) -> PathBuf {
    let trees = truth::trees(root);
    let tree = &trees[&*root.file_name().expect("a name").to_string_lossy()];
    let large = |path: &PathBuf| matches!(tree[path], Entry::File { size, .. } if size > 1 << 20);
    files(tree)
        .into_iter()
        .find(large)
        .expect("the corpus has one")
}

#[test]
fn statfs_is_answered_and_never_zero() {
    let (mounted, root) = mount();
    let empty = rustix::fs::statvfs(mounted.path()).expect("statfs");
    assert!(empty.f_blocks > 0 && empty.f_files > 0);
    fs::symlink_metadata(mounted.at(&root)).expect("it is there");
    let found = rustix::fs::statvfs(mounted.at(&root)).expect("statfs");
    assert!(found.f_blocks * found.f_frsize > 1 << 20);
    assert_eq!(
        (found.f_bfree, found.f_bavail, found.f_namemax),
        (0, 0, 255)
    );
    let mut df = Command::new("df");
    df.args(["--output=fstype,pcent"]).arg(mounted.path());
    let text = run(df);
    assert!(text.contains("fuse.narfs"), "{text}");
}

#[test]
fn the_mount_is_what_it_says() {
    let (mounted, _) = mount();
    let table = fs::read_to_string("/proc/self/mounts").expect("the table");
    let path = mounted.path();
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(1) == path.to_str());
    let line = line.expect("it is mounted");
    let options: Vec<_> = line
        .split(' ')
        .nth(3)
        .expect("options")
        .split(',')
        .collect();
    for option in [
        "ro",
        "nosuid",
        "nodev",
        "noatime",
        "default_permissions",
        "allow_other",
    ] {
        assert!(options.contains(&option), "{option}: {line}");
    }
}

#[test]
fn the_status_directory_is_found_by_name_and_not_listed() {
    let (mounted, root) = mount();
    fs::symlink_metadata(mounted.at(&root)).expect("it is there");
    let names: Vec<_> = fs::read_dir(mounted.path())
        .expect("listed")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert!(
        names
            .iter()
            .any(|name| Some(name.as_os_str()) == root.file_name()),
        "{names:?}"
    );
    assert!(
        !names.iter().any(|name| name == ".nix-snapshotter"),
        "{names:?}"
    );
    let status: Vec<_> = fs::read_dir(mounted.path().join(".nix-snapshotter"))
        .expect("found by name")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert!(
        status.iter().any(|name| name == "summary.json"),
        "{status:?}"
    );
    let document = mounted.status_file(&root);
    assert!(
        status
            .iter()
            .any(|name| Some(name.as_os_str()) == document.file_name()),
        "{status:?}"
    );
    let found = fs::metadata(&document).expect("it is there");
    assert_eq!(found.mode() & 0o7777, 0o444);
    assert_eq!(
        found.len(),
        fs::read(&document).expect("readable").len() as u64
    );
    assert_eq!(
        mounted.status(&root)["storePath"],
        root.to_str().expect("ASCII")
    );
}

#[test]
fn tools_copy_it_as_it_is() {
    let (mounted, root) = mount();
    let name = root
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let trees = truth::trees(&root);
    let wanted = &trees[&name];
    let (from, to) = (mounted.at(&root), mounted.directory().join("copies"));
    fs::create_dir(&to).expect("made");
    let copies = [
        ("cp", "cp -a \"$1\" \"$2\""),
        (
            "tar",
            "mkdir \"$2\"; tar -C \"$1\" -cf - . | tar -C \"$2\" -xf -",
        ),
        ("rsync", "rsync -a \"$1/\" \"$2/\""),
        (
            "sendfile",
            "/usr/bin/python3 -c 'import shutil,sys; shutil.copytree(sys.argv[1], sys.argv[2], symlinks=True)' \"$1\" \"$2\"",
        ),
    ];
    for (tool, script) in copies {
        let copy = to.join(tool);
        run(shell(script, &[&from, &copy]));
        assert_same(tool, &snapshot(&copy), wanted);
        visit(&copy, Path::new(""), &mut |inner, at| {
            let copied = fs::symlink_metadata(at).expect("copied");
            assert_eq!(copied.mtime(), 1, "{tool}: {}", inner.display());
        });
    }
    let found = run(shell(
        "cd \"$1\"; find . -mindepth 1 -printf '%P\\n' | LC_ALL=C sort",
        &[&from],
    ));
    let mut paths: Vec<_> = wanted.keys().skip(1).map(|path| bytes(path)).collect();
    paths.sort();
    let paths: Vec<_> = paths
        .into_iter()
        .map(|p| String::from_utf8(p).expect("UTF-8"))
        .collect();
    assert_eq!(found.lines().collect::<Vec<_>>(), paths);
    let du = run(shell(
        "du -s --apparent-size -B1 \"$1\" | cut -f1; du -s -B512 \"$1\" | cut -f1",
        &[&from],
    ));
    let sizes: Vec<u64> = du
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    let sum = |size: &dyn Fn(u64) -> u64| -> u64 {
        let files = wanted.values().filter_map(|entry| match entry {
            Entry::File { size, .. } => Some(*size),
            _ => None,
        });
        files.map(size).sum()
    };
    assert!(sizes[0] >= sum(&|size| size), "{sizes:?}");
    assert!(sizes[1] >= sum(&|size| size.div_ceil(512)), "{sizes:?}");
}

#[test]
#[allow(unsafe_code, reason = "there is no safe mapping")]
fn bytes_come_in_every_way_that_programs_take_them() {
    let (mounted, root) = mount();
    let path = mounted.at(&root).join(a_file(&root));
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let mut direct = direct.expect("O_DIRECT");
    let size = direct.metadata().expect("stat").len() as usize;
    // Larger than the file, so that the last read is short. Vec<u8> of this size comes from mmap
    // but need not be aligned to a page, which FUSE does not ask for.
    let mut read = Vec::with_capacity(size + 4096);
    direct.read_to_end(&mut read).expect("read with O_DIRECT");
    assert_eq!(read.len(), size);

    let file = File::open(&path).expect("open");
    // SAFETY: the file is on a read-only mount and its content never changes.
    let mapped = unsafe { memmap2::MmapOptions::new().map_exec(&file) }.expect("PROT_EXEC");
    assert!(mapped[..] == read[..], "mmap and O_DIRECT differ");

    let target = mounted.directory().join("sent");
    let out = File::create(&target).expect("made");
    let mut at = 0_u64;
    while (at as usize) < size {
        let left = size - at as usize;
        let n = rustix::fs::sendfile(&out, &file, Some(&mut at), left);
        assert!(n.expect("sendfile") > 0);
    }
    assert_eq!(hash(&target), hash(&path));
    assert!(
        fs::read(&target).expect("readable") == read,
        "sendfile and O_DIRECT differ"
    );
}

#[test]
fn nothing_can_be_written() {
    let (mounted, root) = mount();
    let store = mounted.path();
    let dir = mounted.at(&root);
    let file = dir.join(a_file(&root));
    let new = dir.join("new");
    let here = mounted.directory().join("here");
    fs::write(&here, "x").expect("written");
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        },
        last_modification: Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        },
    };
    let mode = Mode::from_raw_mode(0o777);
    let owner = Some(rustix::process::Uid::from_raw(1));
    let open = |options: &mut OpenOptions, path: &Path| options.open(path).map(drop);
    let ok = |result: rustix::io::Result<()>| result.map_err(io::Error::from);
    let name = CString::new("user.x").expect("no NUL");
    let attempts: Vec<(&str, io::Result<()>)> = vec![
        (
            "open for writing",
            open(OpenOptions::new().write(true), &file),
        ),
        (
            "open for both",
            open(OpenOptions::new().read(true).write(true), &file),
        ),
        (
            "open for appending",
            open(OpenOptions::new().append(true), &file),
        ),
        (
            "open truncating",
            open(OpenOptions::new().write(true).truncate(true), &file),
        ),
        (
            "create",
            open(OpenOptions::new().write(true).create_new(true), &new),
        ),
        ("create in the root", fs::write(store.join("new"), "x")),
        (
            "create a store path",
            fs::write(store.join(format!("{}-x", "0".repeat(32))), "x"),
        ),
        ("mkdir", fs::create_dir(&new)),
        ("mkdir in the root", fs::create_dir(store.join("new"))),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(dir.join("bin"))),
        ("rename", fs::rename(&file, &new)),
        (
            "rename of a store path",
            fs::rename(&dir, store.join("other")),
        ),
        ("link", fs::hard_link(&file, &new)),
        ("symlink", std::os::unix::fs::symlink("x", &new)),
        (
            "chmod",
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o777)),
        ),
        (
            "chown",
            ok(rustix::fs::chownat(
                CWD,
                &file,
                owner,
                None,
                AtFlags::SYMLINK_NOFOLLOW,
            )),
        ),
        (
            "utimensat",
            ok(rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty())),
        ),
        ("truncate", ok(truncate(&file))),
        (
            "mknod",
            ok(rustix::fs::mknodat(CWD, &new, FileType::Fifo, mode, 0)),
        ),
        (
            "setxattr",
            ok(rustix::fs::setxattr(
                &file,
                name.as_c_str(),
                b"x",
                XattrFlags::empty(),
            )),
        ),
        (
            "removexattr",
            ok(rustix::fs::removexattr(&file, name.as_c_str())),
        ),
    ];
    for (what, result) in attempts {
        let error = result.expect_err(what);
        assert_eq!(
            error.raw_os_error(),
            Some(Errno::ROFS.raw_os_error()),
            "{what}: {error}"
        );
    }
    let status = mounted.status_file(&root);
    let error = fs::write(&status, "x").expect_err("the status can't be written");
    assert_eq!(
        error.raw_os_error(),
        Some(Errno::ROFS.raw_os_error()),
        "{error}"
    );
}

/// truncate(2) by path, which rustix does not have: through the shell's tool.
fn truncate(path: &Path) -> rustix::io::Result<()> {
    let script =
        "import os,sys\ntry: os.truncate(sys.argv[1], 0)\nexcept OSError as e: sys.exit(e.errno)";
    let mut command = Command::new("/usr/bin/python3");
    let status = command
        .args(["-c", script])
        .arg(path)
        .status()
        .expect("python3 is installed");
    match status.code() {
        Some(0) => Ok(()),
        code => Err(Errno::from_raw_os_error(code.unwrap_or_default())),
    }
}

#[test]
fn inode_numbers_stay() {
    let (mounted, root) = mount();
    let closure = truth::closure(&root);
    let inodes = || {
        let mut found = BTreeMap::new();
        for name in &closure {
            visit(&mounted.at(name), Path::new(""), &mut |inner, at| {
                let ino = fs::symlink_metadata(at).expect("it is there").ino();
                let before = found.insert((name.clone(), inner.to_owned()), ino);
                assert!(before.is_none());
            });
        }
        found
    };
    let first = inodes();
    let mut unique: Vec<_> = first.values().collect();
    unique.sort();
    unique.dedup();
    assert_eq!(
        unique.len(),
        first.len(),
        "two entries share an inode number"
    );
    assert!(first == inodes(), "another number for the second lookup");
    let listed: BTreeMap<_, _> = fs::read_dir(mounted.at(&root).join("bin"))
        .expect("listed")
        .map(|entry| entry.expect("readable"))
        .map(|entry| (entry.file_name(), rustix_ino(&entry)))
        .collect();
    for (file, ino) in listed {
        let path = Path::new("bin").join(file);
        let name = root
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert_eq!(
            first.get(&(name, path.clone())),
            Some(&ino),
            "{}",
            path.display()
        );
    }
    mounted.stop();
    mounted.start_again();
    assert!(first == inodes(), "other numbers after SIGTERM");
    mounted.kill();
    mounted.start_again();
    assert!(first == inodes(), "other numbers after SIGKILL");
}

fn rustix_ino(entry: &fs::DirEntry) -> u64 {
    std::os::unix::fs::DirEntryExt::ino(entry)
}

#[test]
fn extended_attributes_are_narfss_own_and_no_others() {
    let (mounted, root) = mount();
    let file = mounted.at(&root).join(a_file(&root));
    let mut names = [0_u8; 4096];
    let listed = rustix::fs::listxattr(&file, &mut names).unwrap();
    let names: Vec<_> = names[..listed].split(|b| *b == 0).collect();
    let (end, names) = names.split_last().unwrap();
    assert!(end.is_empty() && !names.is_empty());
    assert!(names.iter().all(|name| name.starts_with(b"user.narfs.")));
    for other in ["security.selinux", "user.other"] {
        let got = rustix::fs::getxattr(&file, other, &mut [0_u8; 64]);
        assert_eq!(got, Err(Errno::NODATA), "{other}");
    }
    // Tools that look for them copy all the same.
    let to = mounted.directory().join("copy");
    run(shell(
        "tar --xattrs --acls -C \"$1\" -cf \"$2\" .",
        &[&mounted.at(&root), &to],
    ));
}
