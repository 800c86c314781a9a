//! Ordinary images: what they hold, what writing to them does, and the layer that is made of the
//! changes, compared between narfs and the overlayfs snapshotter that containerd brings.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use rustix::mount::{UnmountFlags, unmount};
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::{
    containerd::{Containerd, Version},
    mixed::shell_layer,
    mounted::{output, run, shell},
    oci::{Archive, Image, Layer, MTIME, Owned},
    world::{NARFS, World},
};

/// The snapshotter that shows how it has to be.
const OVERLAYFS: &str = "overlayfs";

/// Everything that a program can see of an entry, but its time of access and inode number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    mtime: (i64, i64),
    device: u64,
    size: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Other names of the same inode.
    same_as: Vec<PathBuf>,
}

type Tree = BTreeMap<PathBuf, Seen>;

/// A file system as it is seen. Times later than any of the image's are those of unpacking and writing.
fn look(root: &Path) -> Tree {
    let (mut tree, mut inodes) = (Tree::new(), BTreeMap::<u64, Vec<PathBuf>>::new());
    visit(root, Path::new(""), &mut |path, at| {
        let found = fs::symlink_metadata(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        if !found.is_dir() && found.nlink() > 1 {
            inodes.entry(found.ino()).or_default().push(path.to_owned());
        }
        tree.insert(path.to_owned(), seen(at, &found));
    });
    for names in inodes.into_values() {
        for name in &names {
            let entry = tree.get_mut(name).expect("it was seen");
            entry.same_as = names
                .iter()
                .filter(|other| *other != name)
                .cloned()
                .collect();
        }
    }
    tree
}

fn seen(at: &Path, found: &fs::Metadata) -> Seen {
    let kind = found.file_type();
    let mut content = Vec::new();
    if kind.is_file() {
        let bytes = fs::read(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        content = Sha256::digest(bytes).to_vec();
    } else if kind.is_symlink() {
        let target = fs::read_link(at).expect("a link");
        content = target.into_os_string().into_encoded_bytes();
    }
    let kind = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "link",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () if kind.is_fifo() => "fifo",
        () => "something else",
    };
    let directory = kind == "directory";
    let timed = found.mtime() <= MTIME.cast_signed();
    Seen {
        kind,
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        // What overlayfs says of merged directories depends on nothing that anyone relies on.
        links: if directory { 0 } else { found.nlink() },
        mtime: if timed {
            (found.mtime(), found.mtime_nsec())
        } else {
            (0, 0)
        },
        device: found.rdev(),
        size: if directory { 0 } else { found.len() },
        content,
        xattrs: xattrs(at),
        same_as: Vec::new(),
    }
}

fn visit(root: &Path, inner: &Path, each: &mut dyn FnMut(&Path, &Path)) {
    let at = if inner.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(inner)
    };
    each(inner, &at);
    if fs::symlink_metadata(&at).is_ok_and(|found| found.is_dir()) {
        for entry in fs::read_dir(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display())) {
            let name = entry.expect("readable").file_name();
            visit(root, &inner.join(name), each);
        }
    }
}

fn xattrs(at: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let failed = |e| -> usize { panic!("{}: {e}", at.display()) };
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(at, &mut names[..]).unwrap_or_else(failed);
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let pairs = names.map(|name| {
        let name = String::from_utf8_lossy(name).into_owned();
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(at, &name, &mut value[..]).unwrap_or_else(failed);
        value.truncate(length);
        (OsString::from(name), value)
    });
    pairs.collect()
}

fn assert_same(what: &str, found: &Tree, wanted: &Tree) {
    let mut differences = Vec::new();
    for (path, entry) in wanted {
        if found.get(path) != Some(entry) {
            let other = found.get(path);
            differences.push(format!(
                "{}:\n  {other:?}\n  should be\n  {entry:?}",
                path.display()
            ));
        }
    }
    for path in found.keys().filter(|path| !wanted.contains_key(*path)) {
        differences.push(format!("{}: should not be there", path.display()));
    }
    let count = differences.len();
    differences.truncate(10);
    assert!(
        count == 0,
        "{what}: {count} differences\n{}",
        differences.join("\n")
    );
}

/// `cap_net_raw` as the kernel keeps it: revision 2, permitted and effective.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An image with all of it: three layers, the second and third changing what is below.
fn crafted(name: &str) -> Image {
    let plain = Owned::root(0o644);
    let directory = Owned::root(0o755);
    let somebody = Owned {
        mode: 0o640,
        user: 1000,
        group: 2000,
        mtime: 1_234_567_890,
    };
    let long = "long-".repeat(48);
    let bottom = Layer::new()
        .directory("etc", directory)
        .file("etc/removed", plain, b"goes away")
        .file("etc/replaced", plain, b"the first of it")
        .file("etc/becomes-a-directory", plain, b"a file")
        .file("etc/somebodys", somebody, b"not root's")
        .file("etc/empty", plain, b"")
        .directory("bin", directory)
        .file("bin/setuid", Owned::root(0o4755), b"#!/bin/sh\n")
        .file("bin/setgid", Owned::root(0o2755), b"#!/bin/sh\n")
        .xattrs(&[("security.capability", CAPABILITY)])
        .file("bin/capable", Owned::root(0o755), b"#!/bin/sh\n")
        .directory("tmp", Owned::root(0o1777))
        .directory("private", Owned::root(0o700))
        .xattrs(&[
            ("user.where", b"on a directory"),
            ("user.second", b"\x00\xff"),
        ])
        .directory("marked", directory)
        .xattrs(&[("user.what", b"on a file")])
        .file("marked/file", plain, b"with attributes")
        .directory("linked", directory)
        .file("linked/one", plain, b"three names")
        .hard_link("linked/two", "linked/one")
        .hard_link("linked/three", "linked/one")
        .symlink("linked/absolute", "/etc/replaced")
        .symlink("linked/relative", "../etc/replaced")
        .symlink("linked/nowhere", "nowhere/at all")
        .directory("dev", directory)
        .device("dev/null", EntryType::Char, Owned::root(0o666), (1, 3))
        .device("dev/disk", EntryType::Block, Owned::root(0o660), (7, 200))
        .fifo("dev/pipe", Owned::root(0o600))
        .directory("opaque", directory)
        .file("opaque/below", plain, b"hidden")
        .directory("opaque/deep", directory)
        .file("opaque/deep/below", plain, b"hidden too")
        .directory("gone", directory)
        .file("gone/file", plain, b"with its directory")
        .directory("returns", directory)
        .file("returns/old", plain, b"must not return")
        .directory("merged", directory)
        .file("merged/below", plain, b"from below")
        .directory("names", directory)
        .file(&format!("names/{long}"), plain, b"240 bytes of name")
        .file("names/übung 文件 \u{1F980}", plain, b"not ASCII")
        .file("names/.hidden", plain, b"a dot")
        .file("names/new\nline", plain, b"a line's end");
    let middle = Layer::new()
        .whiteout("etc/removed")
        .file("etc/replaced", Owned::root(0o600), b"the second of it")
        .whiteout("etc/becomes-a-directory")
        .directory("etc/becomes-a-directory", directory)
        .file("etc/becomes-a-directory/inside", plain, b"now there is one")
        .directory("opaque", Owned::root(0o750))
        .opaque("opaque")
        .file("opaque/above", plain, b"seen")
        .whiteout("gone")
        .whiteout("returns")
        .whiteout("linked/two")
        .directory("merged", Owned::root(0o711))
        .file("merged/above", plain, b"from above")
        .directory("empty-opaque", directory)
        .opaque("empty-opaque");
    let top = Layer::new()
        .directory("returns", directory)
        .file("returns/new", plain, b"returned")
        .file("etc/removed", plain, b"and is back")
        .whiteout("opaque/above")
        .whiteout("merged/below")
        .file("linked/upper", plain, b"two names")
        .hard_link("linked/four", "linked/upper")
        .file("dev/null", plain, b"no device any more");
    Image::new(name)
        .entrypoint(&["/bin/setuid"])
        .layer(bottom)
        .layer(middle)
        .layer(top)
}

/// Loads it for both snapshotters; the key of its uppermost snapshot.
fn load_for_both(world: &World, image: Image) -> String {
    let file = world.file("crafted");
    image.write(&file);
    for snapshotter in [OVERLAYFS, NARFS] {
        let output = world.containerd.import(&file, snapshotter);
        let what = format!("the import for {snapshotter}");
        world.containerd.assert_done(&output, &what);
    }
    Archive::read(&file).chain_id()
}

/// What containers do to their root: every operation that overlayfs handles in a way of its own.
fn write_everywhere(root: &Path) {
    let at = |path: &str| root.join(path);
    fs::write(at("etc/new"), "new").expect("a new file");
    fs::write(at("etc/replaced"), "written over").expect("a copy up");
    fs::remove_file(at("etc/removed")).expect("removed");
    fs::remove_dir_all(at("returns")).expect("removed with what it holds");
    fs::create_dir(at("returns")).expect("made again, opaque");
    fs::write(at("returns/third"), "third").expect("written");
    fs::set_permissions(at("bin/setgid"), Permissions::from_mode(0o755)).expect("mode changed");
    chown(at("etc/empty"), Some(12), Some(34)).expect("owner changed");
    fs::rename(at("etc/somebodys"), at("etc/renamed")).expect("a file renamed");
    // Directories of lower layers can't be renamed in place: EXDEV, or a redirect where the kernel
    // is told to make them. `mv` knows both, and so do the programs that matter.
    let moved = output(shell("mv \"$1/merged\" \"$1/moved\"", &[root]));
    assert!(moved.status.success(), "{moved:?}");
    fs::hard_link(at("linked/one"), at("linked/five")).expect("a link to a lower file");
    symlink("five", at("linked/six")).expect("a link");
    fs::write(at("linked/one"), "written through one name").expect("written");
    let value = b"changed";
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("marked/file"), "user.what", value, flags).expect("attribute set");
    rustix::fs::removexattr(at("marked"), "user.second").expect("attribute removed");
    fs::remove_file(at("dev/pipe")).expect("removed");
    let file = File::options()
        .write(true)
        .open(at("names/.hidden"))
        .expect("opened");
    file.set_len(1).expect("cut");
}

fn tree_of(containerd: &Containerd, top: &str, snapshotter: &str) -> Tree {
    look(&containerd.mount_view(top, snapshotter).at)
}

fn written_tree(containerd: &Containerd, top: &str, snapshotter: &str) -> (Tree, Vec<String>) {
    let mount = containerd.mount_new(top, snapshotter);
    write_everywhere(&mount.at);
    let tree = look(&mount.at);
    unmount(&mount.at, UnmountFlags::empty()).expect("unmounted");
    // The layer that containerd would make of the changes.
    let file = containerd.path(&format!("{snapshotter}.diff"));
    let diff = [
        "snapshots",
        "--snapshotter",
        snapshotter,
        "diff",
        "--media-type",
        "application/vnd.oci.image.layer.v1.tar",
        top,
        &mount.key,
    ];
    let output = output(containerd.ctr(&diff));
    containerd.assert_done(&output, "ctr snapshots diff");
    fs::write(&file, output.stdout).expect("written");
    let list = run(shell(
        "tar -tvf \"$1\" | awk '{ print $1, $2, $3, $6, $7, $8 }' | sort",
        &[&file],
    ));
    (tree, list.lines().map(str::to_owned).collect())
}

fn ordinary_layers(version: Version) {
    let world = World::start(version);
    let containerd = &world.containerd;
    let top = load_for_both(&world, crafted("docker.io/library/crafted:1"));
    let wanted = tree_of(containerd, &top, OVERLAYFS);
    // That the comparison compares something.
    assert_eq!(wanted[Path::new("bin/setuid")].mode & 0o7777, 0o4755);
    assert_eq!(wanted[Path::new("dev/disk")].kind, "block device");
    assert_eq!(wanted[Path::new("linked/one")].same_as.len(), 1, "three");
    assert!(
        wanted[Path::new("bin/capable")]
            .xattrs
            .contains_key(&OsString::from("security.capability"))
    );
    assert!(!wanted.contains_key(Path::new("opaque/below")));
    assert!(!wanted.contains_key(Path::new("returns/old")));
    assert_same("the image", &tree_of(containerd, &top, NARFS), &wanted);

    let (wanted, wanted_diff) = written_tree(containerd, &top, OVERLAYFS);
    let (found, diff) = written_tree(containerd, &top, NARFS);
    assert_same("after writing", &found, &wanted);
    assert!(wanted_diff.len() > 15, "{wanted_diff:?}");
    assert_eq!(diff, wanted_diff, "the layer of the changes");
    // What was written went into no layer below.
    let wanted = tree_of(containerd, &top, OVERLAYFS);
    assert_same(
        "the image, again",
        &tree_of(containerd, &top, NARFS),
        &wanted,
    );
}

#[test]
fn ordinary_layers_are_as_overlayfs_has_them() {
    ordinary_layers(Version::Installed);
}

#[test]
fn ordinary_layers_are_as_overlayfs_has_them_on_containerd_2() {
    ordinary_layers(Version::V2);
}

#[test]
fn many_ordinary_layers_are_as_overlayfs_has_them() {
    let world = World::start(Version::Installed);
    // Enough that a page of mount options would not hold absolute paths of them.
    let image = Image::new("docker.io/library/deep:1").layer(shell_layer());
    let image = (0..80).fold(image, |image, layer| {
        let own = format!("from/{layer:02}");
        let text = format!("layer {layer}");
        image.layer(
            Layer::new()
                .directory("from", Owned::root(0o755))
                .file(&own, Owned::root(0o644), text.as_bytes())
                .file("last", Owned::root(0o644), text.as_bytes()),
        )
    });
    let image = image.entrypoint(&["/bin/sleep", "3600"]);
    let name = image.name().to_owned();
    load_for_both(&world, image);
    let trees = [OVERLAYFS, NARFS].map(|snapshotter| {
        let container = world.containerd.start_container(&name, snapshotter, &[]);
        assert_eq!(container.exec_well(&["/bin/cat", "/last"]), "layer 79");
        look(&container.at("/from"))
    });
    assert_eq!(trees[0].len(), 81);
    assert_same("80 layers", &trees[1], &trees[0]);
}
