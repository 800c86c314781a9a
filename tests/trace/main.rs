//! `narfs trace`: a recorded run of a real program, its document held against the daemon's counters
//! and the server's log, and its page opened in a real browser.

#[path = "../support/cache.rs"]
#[allow(dead_code, reason = "this test uses a part of it")]
mod cache;
#[path = "../support/corpus.rs"]
mod corpus;
#[path = "../support/elsewhere.rs"]
mod elsewhere;

mod browser;
mod endings;
mod hostile;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use elsewhere::{Home, Place};
use serde_json::Value;

use browser::Page;

/// A home, and where the trace of a run in it is.
struct Traced {
    home: Home,
}

impl Traced {
    fn new() -> Self {
        // Where nothing is installed, as an ordinary user.
        let home = Home::new(Place::BARE);
        Self { home }
    }

    /// `narfs … trace …`, up to the program.
    fn command(&self, cache: &str, key: &str, flags: &[&str]) -> Command {
        let mut command = self.home.narfs();
        command.args(["--cache", cache, "--trusted-key", key, "trace"]);
        command.arg("--output").arg(self.page());
        command.arg("--json").arg(self.json()).args(flags);
        command.stdin(Stdio::null());
        command
    }

    fn page(&self) -> PathBuf {
        self.home.path().join("tmp/trace.html")
    }

    fn json(&self) -> PathBuf {
        self.home.path().join("tmp/trace.json")
    }

    /// The document; there is nothing else that the run left.
    fn document(&self) -> Value {
        let left: Vec<_> = fs::read_dir(self.home.path().join("tmp"))
            .expect("it is there")
            .map(|entry| entry.expect("readable").file_name())
            .filter(|name| name.to_string_lossy().starts_with("narfs-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let text = fs::read(self.json()).expect("a document");
        serde_json::from_slice(&text).expect("JSON")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn ends(output: &Output, status: i32, stdout: &str) {
    let all = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{all}");
    assert_eq!(text(&output.stdout), stdout, "{all}");
}

fn list<'a>(document: &'a Value, key: &str) -> &'a Vec<Value> {
    document[key].as_array().expect("a list")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

fn sum(rows: &[Value], key: &str) -> u64 {
    rows.iter().map(|row| number(&row[key])).sum()
}

/// What has to be true of every document, and of the page beside it.
#[track_caller]
fn agree(document: &Value, page: &Page) {
    assert_eq!(document["format"], "narfs-trace");
    assert_eq!(document["version"], 1);
    let totals = &document["totals"];
    let (requests, upcalls) = (list(document, "requests"), list(document, "upcalls"));
    let caches = list(&document["counters"], "caches");
    // The events are those that the daemon counted.
    assert_eq!(number(&totals["requests"]), requests.len() as u64);
    assert_eq!(number(&totals["requests"]), sum(caches, "requests"));
    assert_eq!(number(&totals["bytesReceived"]), sum(requests, "bytes"));
    assert_eq!(
        number(&totals["bytesReceived"]),
        sum(caches, "bytesReceived")
    );
    let counted = document["counters"]["upcalls"]
        .as_object()
        .expect("by kind");
    assert_eq!(
        number(&totals["upcalls"]),
        counted.values().map(number).sum::<u64>()
    );
    for what in ["lookup", "read", "readlink"] {
        let events = upcalls
            .iter()
            .filter(|upcall| upcall["what"] == what)
            .count();
        let counter = counted.get(what).map_or(0, number);
        assert_eq!(events as u64, counter, "{what}");
    }
    let waits = upcalls
        .iter()
        .filter(|upcall| upcall["waited"] == true)
        .count();
    assert_eq!(number(&totals["upcallsThatWaited"]), waits as u64);
    let files = list(document, "files");
    assert_eq!(number(&totals["bytesTouched"]), sum(files, "touched"));
    for file in files {
        let (size, touched) = (number(&file["size"]), number(&file["touched"]));
        assert!(
            touched <= size && number(&file["fetched"]) <= size,
            "{file}"
        );
    }
    // Every moment belongs to one thing.
    let milliseconds = document["milliseconds"].as_f64().expect("a number");
    let shares = list(document, "time")
        .iter()
        .map(|share| share["milliseconds"].as_f64());
    let shares: f64 = shares.map(|share| share.expect("a number")).sum();
    assert!(
        (shares - milliseconds).abs() < 0.01,
        "{shares} {milliseconds}"
    );

    // And the page shows all of that.
    assert_eq!(page.script_error(), None);
    assert_eq!(
        page.attribute("<body", "data-ready").as_deref(),
        Some("yes")
    );
    let bars = (requests.len() + waits) as u64;
    assert_eq!(page.bars() as u64, bars);
    assert_eq!(
        page.attribute("<body", "data-shown"),
        Some(bars.to_string())
    );
    for (attribute, total) in [
        ("data-requests", "requests"),
        ("data-bytes-received", "bytesReceived"),
        ("data-bytes-touched", "bytesTouched"),
        ("data-bytes-unpacked", "bytesUnpacked"),
        ("data-upcalls", "upcalls"),
    ] {
        let shown = page.attribute("<p id=\"summary\"", attribute);
        assert_eq!(
            shown,
            Some(number(&totals[total]).to_string()),
            "{attribute}"
        );
    }
    for (table, rows) in [
        ("files", files.len()),
        ("paths", list(document, "storePaths").len()),
        ("requests", requests.len()),
        ("waits", waits),
    ] {
        assert_eq!(page.rows(table), rows, "{table}");
    }
}

#[test]
fn the_page_of_a_real_program_says_what_the_daemon_counted() {
    let nginx = corpus::Nginx::start();
    let traced = Traced::new();
    let root = corpus::store_path("python3.11");
    let program = format!("{}/bin/python3.11", root.display());
    let script = "import sys, json, sqlite3; print(1 + 1, sys.argv[1:]); sys.exit(7)";
    let mut command = traced.command(&nginx.cache("zstd"), &corpus::public_key(), &[]);
    command.args([&program, "-c", script, "--json", "x"]);
    let output = command.output().expect("bash is there");
    ends(&output, 7, "2 ['--json', 'x']\n");
    let said = text(&output.stderr);
    let page = traced.page();
    assert_eq!(said, format!("narfs: the trace is in {}\n", page.display()));

    let document = traced.document();
    agree(&document, &Page::open(&page, ""));
    assert_eq!(document["cold"], true);
    assert_eq!(document["ended"]["status"], 7);
    let command = list(&document, "command");
    assert_eq!((&command[0], command.len()), (&Value::from(program), 5));

    // What the server saw is what was recorded; of streams that the end cut off it sent more.
    let small = |path: &str| path.ends_with(".narinfo") || path.ends_with(".ls");
    let mut served: Vec<_> = nginx
        .requests()
        .into_iter()
        .map(|request| request.path)
        .collect();
    served.retain(|path| small(path));
    let requests = list(&document, "requests");
    let addresses = requests
        .iter()
        .map(|r| r["address"].as_str().expect("a text"));
    let mut recorded: Vec<_> = addresses.filter(|address| small(address)).collect();
    served.sort();
    recorded.sort();
    assert!(recorded.len() > 20, "{recorded:?}");
    assert_eq!(served.len(), recorded.len());
    for (served, recorded) in served.iter().zip(recorded) {
        assert!(recorded.ends_with(served), "{served} {recorded}");
    }
    // Each is for a store path, in a lane, and its times are in order.
    for request in requests {
        let time = |key: &str| {
            request[key]
                .as_f64()
                .unwrap_or_else(|| panic!("{key}: {request}"))
        };
        assert!(request["storePath"].is_string(), "{request}");
        assert!(
            time("at") <= time("answered") && time("answered") <= time("end"),
            "{request}"
        );
        let lanes = list(request, "lanes");
        assert!(!lanes.is_empty(), "{request}");
        if request["outcome"] == "done" {
            assert!(time("answered") <= time("firstByte") && time("firstByte") <= time("end"));
        }
    }
    let lanes =
        |request: &Value, lane: &str| list(request, "lanes").iter().any(|row| row["lane"] == lane);
    for lane in ["demand", "read-ahead"] {
        assert!(
            requests.iter().any(|request| lanes(request, lane)),
            "{lane}"
        );
    }

    // The program itself was read, and nothing was touched that did not come.
    let files = list(&document, "files");
    let python = files
        .iter()
        .find(|file| file["file"] == "bin/python3.11")
        .expect("it ran");
    assert!(number(&python["touched"]) > 100_000, "{python}");
    for file in files {
        assert!(
            number(&file["touched"]) <= number(&file["fetched"]),
            "{file}"
        );
    }
    assert!(
        files.iter().any(|file| number(&file["reads"]) == 0),
        "the rest of a stream"
    );
}

#[test]
fn the_filter_leaves_what_was_asked_for() {
    let nginx = corpus::Nginx::start();
    let traced = Traced::new();
    let root = corpus::store_path("python3.11");
    let mut command = traced.command(&nginx.cache("none"), &corpus::public_key(), &[]);
    command
        .arg(format!("{}/bin/python3.11", root.display()))
        .args(["-c", "pass"]);
    ends(&command.output().expect("bash is there"), 0, "");
    let document = traced.document();
    let page = Page::open(&traced.page(), "#filter=-GLIBC-");
    let all = list(&document, "requests").iter();
    let all = all.chain(
        list(&document, "upcalls")
            .iter()
            .filter(|upcall| upcall["waited"] == true),
    );
    let wanted = all.clone().filter(|event| {
        event["storePath"]
            .as_str()
            .is_some_and(|path| path.contains("-glibc-"))
    });
    let (wanted, all) = (wanted.count(), all.count());
    assert!(0 < wanted && wanted < all, "{wanted} of {all}");
    assert_eq!(page.bars(), all);
    assert_eq!(
        page.attribute("<body", "data-shown"),
        Some(wanted.to_string())
    );
    assert_eq!(page.script_error(), None);
    // An uncompressed cache is read in ranges.
    assert!(
        list(&document, "requests")
            .iter()
            .any(|request| request["kind"] == "range")
    );
}
