//! As mount(8) and people call it.

use std::{fs, path::Path, process::Command};

use crate::{
    mounted::{NARFS, is_mounted, output, run, shell, wait_until},
    world::{World, helper, said, user},
};

/// Runs a script in a mount namespace of its own, in which the helper is `/sbin/mount.narfs`.
fn with_helper_installed(world: &World, script: &str, args: &[&Path]) -> Command {
    let sbin = world.directory.path().join("sbin");
    run(shell(
        "cp -a /sbin/. \"$1\"; cp \"$2\" \"$1/narfs-mount\"; ln -s \"$3\" \"$1/narfs\"; \
         ln -s narfs-mount \"$1/mount.narfs\"; ln -s narfs-mount \"$1/mount.fuse.narfs\"",
        &[&made(&sbin), helper(), Path::new(NARFS)],
    ));
    let script = format!(
        "mount --make-rprivate /; mount --bind \"$1\" \"$(realpath /sbin)\"; shift; {script}"
    );
    let mut command = world.clean(Path::new("unshare"));
    command.args(["-m", "/bin/bash", "-euc", &script, "bash"]);
    command.arg(sbin).args(args);
    command
}

fn made(path: &Path) -> std::path::PathBuf {
    fs::create_dir(path).unwrap();
    path.to_owned()
}

#[test]
fn mount_calls_it_by_type() {
    let world = World::new();
    for name in ["narfs", "fuse.narfs"] {
        let script = "mount -t \"$1\" \"$2\" \"$3\" -o \"$4\"; grep \" $3 \" /proc/self/mounts; wc -c <\"$5\"; \
                      umount \"$3\"; ! grep -q \" $3 \" /proc/self/mounts";
        let options = world.options(",noexec");
        let args = [
            name,
            &world.server.base(),
            &world.path().display().to_string(),
            &options,
        ];
        let mut args: Vec<_> = args.iter().map(Path::new).collect();
        let file = world.at(0, "data");
        args.push(&file);
        let sbin = world.directory.path().join("sbin");
        let _ = fs::remove_dir_all(&sbin);
        let told = run(with_helper_installed(&world, script, &args));
        let (mount, size) = told.trim().split_once('\n').unwrap();
        assert_eq!(size, "900000");
        for option in [
            "fuse.narfs",
            "ro,nosuid,nodev,noexec",
            "default_permissions",
            "allow_other",
        ] {
            assert!(mount.contains(option), "{mount}");
        }
        wait_until("the helper ends", || {
            narfs_mount::status(&world.state_dir()).unwrap().is_none()
        });
    }
}

#[test]
fn fstab_has_a_line_for_it() {
    let world = World::new();
    let table = world.directory.path().join("fstab");
    let options = world.options(",nofail,_netdev,x-systemd.automount,watchdog=9");
    let line = format!(
        "{} {} narfs {options} 0 0\n",
        world.server.base(),
        world.path().display()
    );
    fs::write(&table, line).unwrap();
    let script = "mount -T \"$1\" \"$2\"; wc -c <\"$3\"; umount \"$2\"";
    let file = world.at(2, "more");
    let command = with_helper_installed(&world, script, &[&table, &world.path(), &file]);
    assert_eq!(run(command), "70000\n");
}

#[test]
fn errors_of_mount_are_those_of_the_helper() {
    let world = World::new();
    let refused = |options: &str, words: &[&str], status: i32| {
        let sbin = world.directory.path().join("sbin");
        let _ = fs::remove_dir_all(&sbin);
        let script = "mount -t narfs \"$1\" \"$2\" -o \"$3\"";
        let args = [
            world.server.base(),
            world.path().display().to_string(),
            options.into(),
        ];
        let args: Vec<_> = args.iter().map(Path::new).collect();
        let output = output(with_helper_installed(&world, script, &args));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{told}");
        for word in words {
            assert!(told.contains(word), "{word} is not in: {told}");
        }
        assert!(!is_mounted(&world.path()));
    };
    refused(
        "trusted-kee=x",
        &["trusted-kee", "did you mean trusted-key"],
        1,
    );
    refused("setuid=nobody-at-all", &["setuid", "/etc/passwd"], 1);
    refused(
        "trusted-key=nonsense,state-dir=/nonexistent",
        &["nonsense"],
        1,
    );
    let taken = world.options("");
    fs::write(world.state_dir(), "").unwrap();
    refused(&taken, &[&world.state_dir().display().to_string()], 32);
    fs::remove_file(world.state_dir()).unwrap();
}

#[test]
fn in_the_foreground_it_stays_and_says_what_it_does() {
    let world = World::new();
    let mut command = world.command("");
    let mut child = command
        .arg("-f")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    world.daemon();
    assert_eq!(
        said(user("wc -c <\"$1\"", &[&world.at(0, "data")])),
        "900000\n"
    );
    assert!(child.try_wait().unwrap().is_none());
    crate::world::signal(child.id(), rustix::process::Signal::INT);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("unmounting"),
        "{told}"
    );
    assert!(!is_mounted(&world.path()));
}

#[test]
fn the_kernel_reads_ahead_as_far_as_it_is_told() {
    let world = World::new();
    let device = {
        use std::os::unix::fs::MetadataExt;
        world.mount("");
        fs::metadata(world.path()).unwrap().dev()
    };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // After the first daemon's answer, which sets it to the kernel's own 128.
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    wait_until("it is raised", || {
        fs::read_to_string(&knob).unwrap().trim() == "256"
    });
}
