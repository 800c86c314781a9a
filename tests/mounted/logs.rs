//! What is logged: a line when a cache goes and one when it is back, and never a secret.

use std::fs;

use crate::{
    corpus,
    gate::serve,
    mounted::{Mounted, Setup, wait_until},
    scripted::{Reply, Server},
    snapshot::files,
    truth,
};

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_cache_that_goes_and_comes_back_is_two_lines() {
    let server = serve("none");
    let root = corpus::store_path("python3.11");
    let setup = Setup::new(server.base(), corpus::public_key());
    let mounted = Mounted::start(setup.set("--tries=1"));
    let closure = truth::closure(&root);
    for name in &closure {
        fs::symlink_metadata(mounted.at(name)).expect("it is there");
    }
    server.vanish();
    let trees = truth::trees(&root);
    let mut failed = 0;
    // A cache that rests is asked every two seconds, and every reader waits for that.
    let asked: Vec<_> = closure.iter().take(6).collect();
    for name in &asked {
        for file in files(&trees[*name]).into_iter().take(3) {
            failed += usize::from(fs::read(mounted.at(name).join(file)).is_err());
        }
    }
    assert!(failed > asked.len(), "{failed}");
    wait_until("it is logged", || {
        count(&mounted.log(), "cache offline") > 0
    });
    server.come_back();
    for name in &asked {
        if let Some(file) = files(&trees[*name]).first() {
            fs::read(mounted.at(name).join(file)).expect("it is back");
        }
    }
    wait_until("it is logged", || {
        count(&mounted.log(), "cache online again") > 0
    });
    let log = mounted.log();
    assert_eq!(count(&log, "cache offline"), 1, "{log}");
    assert_eq!(count(&log, "cache online again"), 1, "{log}");
    // What failed because of it is a number in the second line.
    assert!(count(&log, "fetch failed") <= 1, "{log}");
    let back = log.lines().find(|line| line.contains("cache online again"));
    let back = back.expect("a line");
    let suppressed = back
        .split("suppressed=")
        .nth(1)
        .and_then(|n| n.split(' ').next());
    let suppressed: usize = suppressed.and_then(|n| n.parse().ok()).expect("a number");
    assert!(suppressed + 1 >= asked.len(), "{back}");
}

#[test]
fn no_secret_is_logged_and_none_is_reported() {
    let server = Server::start();
    server.everything(Some(Reply::status(503)));
    let (password, token) = ("hunter2-secret", "t0ken-of-the-cache");
    let base = server.base();
    let address = base.strip_prefix("http://").expect("a URL");
    let login = format!("http://somebody:{password}@{address}");
    let mounted = Mounted::prepare(
        Setup::new(&login, corpus::public_key())
            .set("--log=trace")
            .set("--log-format=json")
            .set("--tries=2")
            .set("--lookup-timeout=3s"),
    );
    let token_file = mounted.directory().join("token");
    fs::write(&token_file, token).expect("written");
    let netrc = mounted.directory().join("netrc");
    fs::write(
        &netrc,
        "machine x.example.org login me password netrc-password",
    )
    .expect("written");
    let settings = format!(
        "netrc-file = {netrc:?}\n[[caches]]\nurl = \"http://127.0.0.2:1/x?secret=querysecret\"\ntoken-file = {token_file:?}\n"
    );
    fs::write(mounted.directory().join("config.toml"), settings).expect("written");
    mounted.start_again();
    let absent = mounted.at(format!("{}-absent", "0".repeat(32)));
    assert!(fs::metadata(absent).is_err());
    assert!(
        server
            .requests()
            .iter()
            .any(|request| request.header("authorization").is_some())
    );

    let report = mounted.directory().join("report.tar.zst");
    let mut bugreport = mounted.narfs();
    bugreport.arg("bugreport").arg("-o").arg(&report);
    let shown = crate::mounted::run(bugreport);
    for name in [
        "config.toml",
        "inflight.json",
        "log.txt",
        "metrics.txt",
        "mounts.txt",
        "state.txt",
    ] {
        assert!(shown.contains(name), "{shown}");
    }
    let archive = fs::read(&report).expect("written");
    let archive = zstd::decode_all(&archive[..]).expect("zstd");
    let archive = String::from_utf8_lossy(&archive).into_owned();
    assert!(archive.contains("narfs_build_info") && archive.contains("\"waiting\""));
    assert!(
        archive.contains(" - fuse.narfs "),
        "the mount is in the kernel's table"
    );

    let log = mounted.log();
    assert!(log.lines().count() > 20, "{log}");
    let other = [
        shown,
        mounted.narfs_output(&["status"]),
        mounted.narfs_output(&["top", "--once"]),
    ];
    for (text, of) in [(&log, "the log"), (&archive, "the report")]
        .into_iter()
        .chain(other.iter().map(|text| (text, "a command")))
    {
        for secret in [
            password,
            token,
            "netrc-password",
            "querysecret",
            "c29tZWJvZHk6",
        ] {
            let at = text.find(secret).map(|at| {
                let from = at.saturating_sub(200);
                String::from_utf8_lossy(&text.as_bytes()[from..at]).into_owned()
            });
            assert_eq!(at, None, "{secret} in {of}");
        }
    }
}

#[test]
fn a_report_needs_no_daemon_and_replaces_no_file() {
    let mounted = Mounted::prepare(Setup::new("http://127.0.0.1:1", corpus::public_key()));
    let report = mounted.directory().join("report.tar.zst");
    let bugreport = || {
        let mut command = mounted.narfs();
        command.arg("bugreport").arg("-o").arg(&report);
        command
    };
    let shown = crate::mounted::run(bugreport());
    assert!(shown.contains("version.txt"), "{shown}");
    let archive = zstd::decode_all(&fs::read(&report).expect("written")[..]).expect("zstd");
    assert!(String::from_utf8_lossy(&archive).contains("no daemon answers"));
    let again = crate::mounted::output(bugreport());
    assert_eq!(again.status.code(), Some(6));
}
