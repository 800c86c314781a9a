//! `narfs-mount`, also installed as `mount.narfs` and `mount.fuse.narfs`. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    narfs_mount::run(&narfs_mount::Called::directly())
}
