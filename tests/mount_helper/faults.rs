//! Daemons that can't be started, and other versions in their place.

use std::{fs, os::unix::fs::FileExt, path::Path};

use rustix::process::Signal;

use crate::{
    mounted::{self, NARFS, output, run, wait_until},
    world::{World, program, said, signal, user},
};

/// A program in the place of narfs that can be broken.
fn breakable(world: &World) -> std::path::PathBuf {
    let path = world.directory.path().join("narfs");
    let broken = world.directory.path().join("broken");
    let text = format!(
        "[ \"$1\" = daemon ] && [ -e '{}' ] && {{ echo 'out of luck' >&2; exit 9; }}\nexec '{NARFS}' \"$@\"",
        broken.display()
    );
    program(&path, &text);
    path
}

#[test]
fn a_crash_loop_ends_in_errors_with_a_reason_and_a_new_start_in_answers() {
    let world = World::new();
    let program = breakable(&world);
    let mut command = world.command("");
    command.arg("--program").arg(&program);
    run(command);
    crate::abort_when_it_hangs(&world.path());
    let path = world.at(0, "data");
    assert_eq!(said(user("wc -c <\"$1\"", &[&path])), "900000\n");
    let broken = world.directory.path().join("broken");
    fs::write(&broken, "").unwrap();
    signal(world.daemon(), Signal::KILL);
    let waits = user("wc -c <\"$1\" || echo error", &[&world.at(1, "data")]);
    wait_until("requests are refused", || {
        world.status().state == "refusing"
    });
    // The mount is there; who waited has an error, not for ever nothing.
    assert_eq!(said(waits), "error\n");
    assert!(mounted::is_mounted(&world.path()));
    let status = world.status();
    assert_eq!(
        (status.daemon, &*status.reason),
        (None, "it ended with status 9")
    );
    let shown = output(world.narfs(&["status"]));
    let told = String::from_utf8_lossy(&shown.stderr);
    assert!(shown.status.success(), "{told}");
    for words in ["I/O errors", "narfs upgrade", "status 9"] {
        assert!(told.contains(words), "{told}");
    }
    assert!(world.log().contains("out of luck"), "{}", world.log());

    fs::remove_file(&broken).unwrap();
    let program = format!("--program={}", program.display());
    run(world.narfs(&["upgrade", &program]));
    assert_eq!(
        said(user("wc -c <\"$1\"", &[&world.at(1, "data")])),
        "900000\n"
    );
    assert_eq!(said(user("wc -c <\"$1\"", &[&path])), "900000\n");
}

#[test]
fn another_version_takes_over_under_readers() {
    let world = World::new();
    world.mount("");
    let mut readers = world.readers(16);
    let other = world.directory.path().join("other");
    fs::create_dir(&other).unwrap();
    let other = other.join("narfs");
    run(mounted::shell(
        "cp \"$1\" \"$2\"",
        &[Path::new(NARFS), &other],
    ));
    for program in [&*other, Path::new(NARFS), &*other] {
        let before = (readers.go_on(2), world.daemon(), world.status().helper);
        let mut command = world.narfs(&["upgrade"]);
        command.arg("--program").arg(program);
        let told = run(command);
        let now = world.daemon();
        assert!(told.contains(&format!("process {now}")), "{told}");
        assert_ne!(now, before.1);
        assert_eq!(world.status().helper, before.2, "the same process");
        let runs = fs::read_link(format!("/proc/{now}/exe")).unwrap();
        assert_eq!(runs, program.canonicalize().unwrap());
    }
    readers.go_on(2);
    println!("{} over 3 upgrades", readers.end());
}

#[test]
fn what_is_no_program_is_not_upgraded_to() {
    let world = World::new();
    world.mount("");
    let daemon = world.daemon();
    let inside = format!("--program={}", world.at(0, "data").display());
    for program in ["--program=/nonexistent/narfs", &inside] {
        let output = output(world.narfs(&["upgrade", program]));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{told}");
    }
    assert_eq!(world.daemon(), daemon);
    let nobody = World::new();
    let output = output(nobody.narfs(&["upgrade"]));
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn the_daemon_repairs_what_the_disk_damaged_while_it_serves() {
    let world = World::new();
    world.mount("");
    let daemon = world.daemon();
    let path = world.packages[2].path.absolute();
    run(world.narfs(&["prefetch", "-q", &path]));
    let content = fs::read_dir(world.state_dir().join("content")).unwrap();
    let nars = content.map(|entry| entry.unwrap().path());
    let nars: Vec<_> = nars
        .filter(|path| path.extension().is_some_and(|kind| kind == "nar"))
        .collect();
    let [nar] = &nars[..] else { panic!("{nars:?}") };
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(nar)
        .unwrap();
    for at in [5_000, 400_000] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
    let before = world.server.requests().len();
    let said_so = run(world.narfs(&["check", "--repair"]));
    assert!(said_so.starts_with("repaired\t"), "{said_so}");
    assert!(world.server.requests().len() > before, "from nothing");
    assert!(run(world.narfs(&["check"])).starts_with("sound\t"));
    // Nobody has read it before, so these bytes come from the daemon.
    let mut readers = world.readers(2);
    readers.go_on(2);
    readers.end();
    assert_eq!(world.daemon(), daemon, "it served all the time");
}

#[test]
fn log_lines_of_helper_and_daemon_have_the_form_of_the_setting() {
    // From the command line of mount(8), and from the configuration file.
    for (option, file) in [(",log-format=json", ""), ("", "log-format = \"json\"\n")] {
        let world = World::new();
        fs::write(world.directory.path().join("config.toml"), file).unwrap();
        world.mount(option);
        let daemon = world.daemon();
        signal(daemon, Signal::KILL);
        world.next_daemon(daemon);
        run(world.narfs(&["umount", &world.path().display().to_string()]));
        wait_until("the helper has ended", || world.log().contains("has ended"));
        let log = world.log();
        let mut of_helper = Vec::new();
        for line in log.lines() {
            let parsed = serde_json::from_str::<serde_json::Value>(line);
            let event = parsed.unwrap_or_else(|e| panic!("{e}: {line}\n---\n{log}"));
            for key in ["timestamp", "level", "message", "target"] {
                assert!(event[key].is_string(), "{line}");
            }
            if event["target"] == "narfs_mount" {
                of_helper.push((event["level"].clone(), event["message"].clone()));
            }
        }
        let says = |level: &str, words: &str| {
            let said = of_helper.iter().any(|(l, message)| {
                *l == level && message.as_str().is_some_and(|m| m.contains(words))
            });
            assert!(said, "{level} {words}: {of_helper:?}");
        };
        says("INFO", "is served by process");
        says("WARN", "served no longer: it was killed by signal 9");
        says("INFO", "has ended");
    }
}
