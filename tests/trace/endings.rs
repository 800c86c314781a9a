//! Programs that fail, that are interrupted, that are not there; and starts that are not cold.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Traced, agree, browser::Page, corpus, ends, list, number, text};

struct Python {
    nginx: corpus::Nginx,
    traced: Traced,
    program: String,
}

impl Python {
    fn new() -> Self {
        let root = corpus::store_path("python3.11");
        Self {
            nginx: corpus::Nginx::start(),
            traced: Traced::new(),
            program: format!("{}/bin/python3.11", root.display()),
        }
    }

    fn run(&self, flags: &[&str], script: &str) -> Command {
        let cache = self.nginx.cache("zstd");
        let mut command = self.traced.command(&cache, &corpus::public_key(), flags);
        command.args([&self.program, "-c", script]);
        command
    }
}

#[test]
fn an_interrupted_program_has_its_page() {
    let python = Python::new();
    let script = "import time; print('ready', flush=True)\nwhile True: time.sleep(0.05)";
    let mut command = python.run(&[], script);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash is there");
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("it runs");
    assert_eq!(line, "ready\n");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let begun = Instant::now();
    let output = child.wait_with_output().expect("it ends");
    assert!(begun.elapsed() < Duration::from_secs(60));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("KeyboardInterrupt"), "{said}");
    let document = python.traced.document();
    assert_eq!(document["ended"]["signal"], 2);
    agree(&document, &Page::open(&python.traced.page(), ""));
}

#[test]
fn a_warm_start_asks_for_nothing_and_says_so() {
    let python = Python::new();
    ends(
        &python.run(&[], "pass").output().expect("bash is there"),
        0,
        "",
    );
    assert_eq!(python.traced.document()["cold"], true);
    assert!(
        !python.traced.home.state().exists(),
        "a cold start leaves it alone"
    );
    // Its closure is fetched by somebody else.
    let mut fetch = python.traced.home.narfs();
    let cache = python.nginx.cache("zstd");
    fetch.args(["--cache", &cache, "--trusted-key", &corpus::public_key()]);
    let root = corpus::store_path("python3.11");
    fetch.args(["prefetch", "--closure"]).arg(root);
    ends(&fetch.output().expect("bash is there"), 0, "");
    let before = python.nginx.requests().len();
    ends(
        &python
            .run(&["--warm"], "print(3)")
            .output()
            .expect("bash is there"),
        0,
        "3\n",
    );
    let document = python.traced.document();
    assert_eq!(document["cold"], false);
    assert_eq!(list(&document, "requests").len(), 0);
    assert_eq!(python.nginx.requests().len(), before);
    assert!(number(&document["totals"]["bytesTouched"]) > 1_000_000);
    agree(&document, &Page::open(&python.traced.page(), ""));
}

#[test]
fn what_cannot_be_run_has_a_page_and_its_status() {
    let python = Python::new();
    let absent = "/nix/store/00000000000000000000000000000000-absent/bin/x";
    let cache = python.nginx.cache("zstd");
    let mut command = python.traced.command(&cache, &corpus::public_key(), &[]);
    let output = command.arg(absent).output().expect("bash is there");
    ends(&output, 3, "");
    assert!(text(&output.stderr).contains("is in none of the caches"));
    let document = python.traced.document();
    let requests = list(&document, "requests");
    assert!(
        requests
            .iter()
            .any(|request| request["outcome"] == "absent"),
        "{requests:?}"
    );
    agree(&document, &Page::open(&python.traced.page(), ""));
}

#[test]
fn a_page_that_cannot_be_written_is_said_before_the_program_runs() {
    let python = Python::new();
    let mut command = python.run(&[], "print('it ran')");
    fs::create_dir(python.traced.page()).expect("ours");
    let output = command.output().expect("bash is there");
    ends(&output, 6, "");
    assert!(
        text(&output.stderr).contains("trace.html can't be written"),
        "{output:?}"
    );
}
