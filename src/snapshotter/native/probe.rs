//! Whether this kernel can do it, tried with an overlay of four files.
//!
//! Data-only lowers are there since Linux 6.5, lazily looked up since 6.6, and without the mount option `metacopy`
//! since 6.16, if the files that name their content are in the lowest of the other lowers. With that option a container's own overlay must not be mounted: a `chmod` would leave a file in the
//! snapshot that has no content of its own, and reads as zeros where another mount has no such option.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{XattrFlags, setxattr},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::snapshotter::mounts::{Layers, Overlay};

const WHERE: &str = "probe";

/// Takes away what a killed process left of a try.
pub(super) fn leave(tmp: &Path) {
    // Nearly always there is none.
    let _ = unmount(tmp.join(WHERE).join("at"), UnmountFlags::DETACH);
}

/// Tries it, in a directory below `tmp`.
pub(super) fn works(tmp: &Path, overlay: Overlay) -> io::Result<()> {
    let directory = tmp.join(WHERE);
    let outcome = tried(&directory, overlay);
    leave(tmp);
    fs::remove_dir_all(&directory)?;
    outcome
}

fn tried(directory: &Path, overlay: Overlay) -> io::Result<()> {
    let make = |name: &str| -> io::Result<PathBuf> {
        let path = directory.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let (tree, below, files, mounted, at) = (
        make("tree")?,
        make("below")?,
        make("files")?,
        make("mounted")?,
        make("at")?,
    );
    let (upper, work) = (make("upper")?, make("work")?);
    let space = if overlay.userxattr { "user" } else { "trusted" };
    for (name, content) in [("copied", &files), ("fetched", &mounted)] {
        let file = tree.join(name);
        fs::File::create(&file)?.set_len(name.len() as u64)?;
        setxattr(
            &file,
            format!("{space}.overlay.metacopy"),
            b"",
            XattrFlags::CREATE,
        )?;
        let redirect = format!("/{name}");
        let attribute = format!("{space}.overlay.redirect");
        setxattr(&file, attribute, redirect.as_bytes(), XattrFlags::CREATE)?;
        fs::write(content.join(name), name)?;
    }
    let layers = Layers::Writable {
        upper,
        work,
        lowers: vec![below, tree],
    };
    let mounts = layers.mounts(overlay, &[files, mounted]);
    let options = mounts.first().map(|mount| mount.options.join(","));
    let options = CString::new(options.unwrap_or_default())?;
    mount(
        "overlay",
        &at,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    for name in ["copied", "fetched"] {
        if fs::read(at.join(name))? != name.as_bytes() {
            return Err(io::Error::other(format!(
                "the file {name:?} reads as another"
            )));
        }
    }
    Ok(())
}
