//! `narfs run`, as root and as an ordinary user, with a `/nix` on the machine and without: real
//! programs from a real cache behind nginx.

#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/elsewhere.rs"]
mod elsewhere;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{ffi::OsStringExt, process::ExitStatusExt},
    process::{Child, Command, Output, Stdio},
};

use elsewhere::{Home, Place, USER};
use rustix::process::Signal;

/// Answers when everything that was touched is complete: says so, or which is not, and exits.
const UNTIL_COMPLETE: &str = "
import json, sys, time
for _ in range(6000):
    paths = json.load(open('/nix/store/.nix-snapshotter/summary.json'))['paths']
    if paths['fetching'] + paths['partial'] == 0: sys.exit(0)
    time.sleep(0.01)
sys.exit(str(paths))
";

struct Machine {
    nginx: corpus::Nginx,
    home: Home,
    program: String,
}

impl Machine {
    fn new(place: Place) -> Self {
        let root = corpus::store_path("python3.11");
        Self {
            nginx: corpus::Nginx::start(),
            home: Home::new(place),
            program: format!("{}/bin/python3.11", root.display()),
        }
    }

    /// `narfs --cache … run`, with nothing behind it.
    fn run(&self) -> Command {
        let mut command = self.home.narfs();
        command.args(["--cache", &self.nginx.cache("zstd")]);
        command.args(["--trusted-key", &corpus::public_key(), "run"]);
        command
    }

    fn python(&self, script: &str) -> Command {
        let mut command = self.run();
        command.args([&self.program, "-c", script]);
        command
    }

    /// Bytes that were sent so far of each narinfo, listing and NAR.
    fn sent(&self) -> BTreeMap<String, u64> {
        let mut sent = BTreeMap::new();
        for request in self.nginx.requests() {
            *sent.entry(request.path).or_default() += request.bytes;
        }
        sent
    }

    fn daemons_started(&self) -> usize {
        let log = fs::read_to_string(self.home.state().join("daemon.log")).expect("a log");
        log.lines().filter(|l| l.contains(" INFO serving ")).count()
    }
}

fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .expect("bash is there")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_says(output: &Output, status: i32, stdout: &str) {
    let all = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{all}");
    assert_eq!(text(&output.stdout), stdout, "{all}");
}

#[test]
fn a_program_runs_for_everybody_everywhere() {
    for place in Place::ALL {
        let machine = Machine::new(place);
        let script = "import os, sys, json, ssl, sqlite3; print(1 + 1, os.getcwd(), os.environ['FOO'], \
                      os.getuid(), os.getgid(), sys.argv[1:]); sys.exit(7)";
        let mut command = machine.python(script);
        command.args(["--cache", "a  b", "--", "-x"]);
        command.arg(OsString::from_vec(b"\xff".to_vec()));
        command.env("FOO", "bar").current_dir("/usr/bin");
        let id = if place.user { USER } else { 0 };
        let want = format!("2 /usr/bin bar {id} {id} ['--cache', 'a  b', '--', '-x', '\\udcff']\n");
        let output = output(&mut command);
        assert_says(&output, 7, &want);
        assert_eq!(text(&output.stderr), "", "{place:?}");
    }
}

#[test]
fn standard_streams_are_the_programs() {
    let machine = Machine::new(Place::BARE);
    let script = "import sys; sys.stderr.write('!'); sys.stdout.write(sys.stdin.read()[::-1])";
    let mut child = machine
        .python(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash is there");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"abc").expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_says(&output, 0, "cba");
    assert_eq!(text(&output.stderr), "!");
}

#[test]
fn a_signal_ends_the_program_itself() {
    let machine = Machine::new(Place::USER);
    let script = "import time; print('ready', flush=True); time.sleep(600)";
    let mut child = machine
        .python(script)
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash is there");
    wait_for(&mut child, "ready\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    let status = child.wait().expect("it ended");
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
}

fn wait_for(child: &mut Child, want: &str) {
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("it is UTF-8");
    assert_eq!(line, want);
}

#[test]
fn the_programs_children_see_the_same_store_and_its_status() {
    let machine = Machine::new(Place::BARE);
    let script = "import subprocess, sys; \
                  print(subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout, end=''); \
                  print(subprocess.run(['ls', '/nix/store/.nix-snapshotter'], capture_output=True, text=True).stdout, end='')";
    let said = output(&mut machine.python(script));
    let said = text(&said.stdout) + &text(&said.stderr);
    assert!(said.starts_with("42\n"), "{said}");
    let name = machine.program.split('/').nth(3).expect("a store path");
    for file in [&format!("{name}.json"), "summary.json"] {
        assert!(said.lines().any(|line| line == file), "{file}: {said}");
    }
    // Nothing of it is mounted on the machine.
    assert!(
        !fs::read_to_string("/proc/mounts")
            .expect("there")
            .contains("narfs-root")
    );
}

#[test]
fn what_cannot_be_run_says_why() {
    let machine = Machine::new(Place::BARE);
    let absent = "/nix/store/00000000000000000000000000000000-absent/bin/x";
    let python = machine.program.trim_end_matches("/bin/python3.11");
    let cases = [
        (absent.to_owned(), 3, "is in none of the caches"),
        (
            format!("{python}/bin/nonsense"),
            127,
            "/bin/nonsense can't be run",
        ),
        (format!("{python}/bin"), 126, "no executable file"),
        ("/usr/bin/env".to_owned(), 2, "is not in /nix/store"),
    ];
    for (program, status, message) in cases {
        let output = output(machine.run().arg(&program));
        assert_says(&output, status, "");
        let said = text(&output.stderr);
        assert!(said.contains(message), "{program}: {said}");
    }
    machine.home.end_daemon(Signal::TERM);

    // Signed by somebody else.
    let mut command = machine.home.narfs();
    command.args(["--cache", &machine.nginx.cache("zstd"), "run"]);
    let refused = output(command.arg(&machine.program));
    assert_says(&refused, 4, "");
    assert!(text(&refused.stderr).contains("has no signature by a trusted key"));
    machine.home.end_daemon(Signal::TERM);

    // Nobody listens there.
    let unbound = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", unbound.local_addr().expect("bound"));
    drop(unbound);
    let mut command = machine.home.narfs();
    command.args(["--cache", &url, "--tries", "1", "run", absent]);
    let unreachable = output(&mut command);
    assert_says(&unreachable, 5, "");
    assert!(text(&unreachable.stderr).contains(&url), "{unreachable:?}");
}

#[test]
fn without_the_device_it_says_what_to_do() {
    let machine = Machine::new(Place {
        fuse: false,
        ..Place::BARE
    });
    let refused = output(&mut machine.python("print(1)"));
    assert_says(&refused, 6, "");
    let said = text(&refused.stderr);
    assert!(said.contains("/dev/fuse can't be opened"), "{said}");
    assert!(said.contains("chmod 0666 /dev/fuse"), "{said}");
}

#[test]
fn a_daemon_with_other_settings_is_not_shared() {
    let machine = Machine::new(Place::USER);
    assert_says(&output(&mut machine.python("print(1)")), 0, "1\n");
    let daemon = machine.home.daemon().expect("it stays");
    let other = machine.nginx.cache("xz");
    let mut command = machine.home.narfs();
    command.args(["--cache", &other, "--trusted-key", &corpus::public_key()]);
    let refused = output(command.args(["run", &machine.program, "-c", "print(2)"]));
    assert_says(&refused, 5, "");
    let said = text(&refused.stderr);
    let ours = machine.nginx.cache("zstd");
    for part in [&ours, &other, "--state-dir", &format!("kill {daemon}")] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // One of the ways out that it names.
    machine.home.end_daemon(Signal::TERM);
    let mut command = machine.home.narfs();
    command.args(["--cache", &other, "--trusted-key", &corpus::public_key()]);
    let out = output(command.args(["run", &machine.program, "-c", "print(2)"]));
    assert_says(&out, 0, "2\n");
}

#[test]
fn twenty_at_once_share_one_daemon_and_fetch_once() {
    let machine = Machine::new(Place::BARE);
    let children: Vec<_> = (0..20)
        .map(|n| {
            machine
                .python(&format!("import json, ssl; print({n})"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("bash is there")
        })
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("it ends");
        assert_says(&output, 0, &format!("{n}\n"));
    }
    assert_eq!(machine.daemons_started(), 1);
    let sent = machine.sent();
    assert!(sent.keys().any(|path| path.contains("/nar/")), "{sent:?}");
    for (path, bytes) in sent.into_iter().filter(|(path, _)| path.contains(".nar")) {
        // In one request or, a long one, in several: but no byte of it twice.
        let file = corpus::directory().join("caches").join(&path[1..]);
        let size = fs::metadata(&file).expect("it was served").len();
        assert!(bytes <= size, "{path}: {bytes} of {size} bytes were sent");
    }
}

#[test]
fn what_was_fetched_is_there_for_the_next_daemon() {
    let machine = Machine::new(Place::BARE);
    let use_it = "import json, ssl, sqlite3; print(ssl.OPENSSL_VERSION_INFO[0])";
    let first = output(&mut machine.python(use_it));
    assert_says(&first, 0, "3\n");
    assert_says(&output(&mut machine.python(UNTIL_COMPLETE)), 0, "");
    machine.home.end_daemon(Signal::TERM);
    let before = machine.nginx.requests().len();
    assert!(before > 10, "{before}");
    assert_says(&output(&mut machine.python(use_it)), 0, "3\n");
    assert_eq!(machine.nginx.requests()[before..], [], "warm: no request");
    assert_eq!(machine.daemons_started(), 2);
    // And after a death in the middle of everything.
    machine.home.end_daemon(Signal::KILL);
    assert_says(&output(&mut machine.python(use_it)), 0, "3\n");
    assert_eq!(machine.nginx.requests()[before..], [], "warm: no request");
    assert_eq!(machine.daemons_started(), 3);
}

#[test]
fn a_daemon_without_use_ends_by_itself() {
    let machine = Machine::new(Place::BARE);
    let mut command = machine.home.narfs();
    let ended = output(command.args(["daemon", "--idle-exit", "100ms"]));
    assert_says(&ended, 0, "");
    let said = text(&ended.stderr);
    assert!(said.contains("idle"), "{said}");
    assert!(!machine.home.state().join("control.sock").exists());
}

#[test]
fn a_program_lives_on_without_the_next_runs() {
    let machine = Machine::new(Place::USER);
    let script = "import sys; print('ready', flush=True); sys.stdin.read(); \
                  import decimal; print(decimal.Decimal(1) / 4)";
    let mut long = machine
        .python(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash is there");
    wait_for(&mut long, "ready\n");
    assert_says(&output(&mut machine.python("print('short')")), 0, "short\n");
    drop(long.stdin.take());
    let output = long.wait_with_output().expect("it ends");
    assert_says(&output, 0, "0.25\n");
    assert_eq!(machine.daemons_started(), 1);
}
