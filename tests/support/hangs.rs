//! A deadline for a mount under test.

use std::{fs, fs::File, io::Write, path::Path, time::Duration};

/// Nothing takes so long; then the mount is aborted, and whoever waits there gets an error.
const HANGS: Duration = Duration::from_secs(150);

/// Aborts the mount's connection after a time, through the kernel's control files. Without, a
/// server that does not come would leave processes behind that nothing can kill.
pub fn abort_when_it_hangs(mountpoint: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(&*mountpoint.to_string_lossy()));
    let device = line.expect("it is mounted").split(' ').nth(2).unwrap();
    let connection = device.split(':').nth(1).unwrap().to_owned();
    let control = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("fusectl", control.path(), "fusectl", flags, None).expect("fusectl");
    let abort = File::options()
        .write(true)
        .open(control.path().join(connection).join("abort"))
        .expect("a connection");
    rustix::mount::unmount(control.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    // Where the number of kills is chosen by hand, each takes its time.
    let kills = std::env::var("NARFS_KILLS")
        .ok()
        .and_then(|n| n.parse().ok());
    let longer = Duration::from_secs(5) * kills.unwrap_or(0u32);
    std::thread::spawn(move || {
        std::thread::sleep(HANGS + longer);
        // Fails where the mount has ended, as it should have by now.
        let _ = (&abort).write_all(b"1");
    });
}
