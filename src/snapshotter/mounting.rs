//! The mount of the store: taken over from the snapshotter before, or made anew.

use std::{io, os::unix::fs::DirBuilderExt, path::Path};

use super::keeper;
use crate::{
    daemon::{Shared, mount_failure},
    failure::{Exit, Failure},
    fuse::{self, Kept, Mount, MountError, mount_kept},
};

/// The mount while it is served.
pub(super) struct Mounted {
    pub mount: Mount,
    /// Whether it was made just now, and nobody uses it yet.
    pub fresh: bool,
}

/// Serves the mount of a state directory, at `mountpoint` in it. Nobody else can: this process
/// holds the directory.
pub(super) fn mount(shared: &Shared, root: &Path, mountpoint: &Path) -> Result<Mounted, Failure> {
    if let Some(mount) = taken_over(shared, root, mountpoint) {
        fuse::raise_read_ahead(mountpoint);
        let fresh = false;
        return Ok(Mounted { mount, fresh });
    }
    make_directory(mountpoint)?;
    if fuse::unmount_dead(mountpoint).map_err(mount_failure)? {
        tracing::warn!(
            mountpoint = %mountpoint.display(),
            "a mount without a server was left and is replaced; containers that used it have to be started again"
        );
    }
    let kept = mount_kept(mountpoint, &shared.options).map_err(mount_failure)?;
    let mount = serve_first(shared, root, mountpoint, kept).map_err(|failure| {
        // Nobody would ever answer there. That it fails too adds nothing to the error.
        let _ = fuse::unmount(mountpoint, true);
        failure
    })?;
    fuse::raise_read_ahead(mountpoint);
    let fresh = true;
    Ok(Mounted { mount, fresh })
}

/// Begins to serve a mount that was just made, with a keeper beside it.
fn serve_first(
    shared: &Shared,
    root: &Path,
    mountpoint: &Path,
    kept: Kept,
) -> Result<Mount, Failure> {
    let number = fuse::mounted_device(mountpoint).unwrap_or_default();
    let system = |e: io::Error| {
        Failure::new(
            Exit::System,
            "the process that keeps the mount can't be started",
        )
        .because(&e)
    };
    keeper::start(root, &kept, &number).map_err(system)?;
    Mount::take_over(&shared.store, kept, &shared.options).map_err(mount_failure)
}

/// The mount that a keeper has, if it is the one that is there. One that can't be served any more
/// is ended.
fn taken_over(shared: &Shared, root: &Path, mountpoint: &Path) -> Option<Mount> {
    let why = match keeper::fetch(root) {
        Ok(None) => return None,
        Ok(Some((kept, number))) => match fuse::mounted_device(mountpoint) {
            Some(found) if found == number => {
                match Mount::take_over(&shared.store, kept, &shared.options) {
                    Ok(mount) => return Some(mount),
                    Err(e) => e.to_string(),
                }
            }
            _ => "it is not mounted any more".into(),
        },
        Err(e) => e.to_string(),
    };
    tracing::warn!(
        mountpoint = %mountpoint.display(),
        why,
        "the mount of an earlier run can't be taken over; containers that used it have to be started again"
    );
    keeper::end(root);
    None
}

fn make_directory(mountpoint: &Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o755).create(mountpoint);
    match made {
        // What a dead server left there looks like nothing at all.
        Err(e) if !fuse::mounted_by_narfs(mountpoint) => {
            let path = mountpoint.into();
            Err(mount_failure(MountError::Io { path, source: e }))
        }
        _ => Ok(()),
    }
}
