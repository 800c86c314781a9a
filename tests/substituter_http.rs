//! Caches over HTTP against a server that does everything wrong that servers do.

mod support;

use std::time::Duration;

use narfs::{
    nix::StorePathHash,
    substituter::{
        Deadline, FetchError, FetchFailure, HttpOptions, NarBody, RetryPolicy, Substituter,
        SubstituterConfig, Transport,
    },
};
use support::scripted::{Gate, Reply, Server};

const HASH: &str = "2j8qw9i2q1p6cmli6976v4wi0sw9r4p5";
const NARINFO: &str = "/2j8qw9i2q1p6cmli6976v4wi0sw9r4p5.narinfo";
const LISTING: &str = "/2j8qw9i2q1p6cmli6976v4wi0sw9r4p5.ls";
const NAR: &str = "/nar/x.nar";

fn hash() -> StorePathHash {
    StorePathHash::parse(HASH.as_bytes()).unwrap()
}

/// Long enough that only a test that hangs meets it.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn options() -> HttpOptions {
    let base = Duration::from_millis(1);
    HttpOptions {
        retry: RetryPolicy {
            base,
            too_many_requests: base,
            ..RetryPolicy::default()
        },
        proxy_from_environment: false,
        ..HttpOptions::default()
    }
}

fn impatient() -> HttpOptions {
    let short = Duration::from_millis(100);
    let retry = RetryPolicy {
        tries: 1,
        ..RetryPolicy::default()
    };
    HttpOptions {
        stall_timeout: short,
        connect_timeout: short,
        retry,
        ..options()
    }
}

fn substituter_with(url: &str, options: HttpOptions) -> Substituter {
    let config = SubstituterConfig {
        url: url.into(),
        ..SubstituterConfig::default()
    };
    Substituter::new(&config, &Transport::new(options).unwrap()).unwrap()
}

fn substituter(server: &Server) -> Substituter {
    substituter_with(&server.base(), options())
}

fn numbers(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i / 251 + i) as u8).collect()
}

async fn all(mut body: NarBody) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

async fn narinfo(substituter: &Substituter) -> Result<Option<Vec<u8>>, FetchError> {
    Ok(substituter
        .narinfo(&hash(), soon())
        .await?
        .map(|document| document.bytes))
}

#[tokio::test]
async fn answers_the_five_questions() {
    let server = Server::start();
    let nar = numbers(300_000);
    server.on("/a/nix-cache-info", Reply::file("StoreDir: /nix/store\n"));
    server.on(&format!("/a{NARINFO}"), Reply::file("StorePath: x\n"));
    let packed = Reply::file("packed").header("Content-Encoding", "ZSTD");
    server.on(&format!("/a{LISTING}"), packed);
    server.on("/a/nar/x.nar?token=hunter2", Reply::file(nar.clone()));
    let cache = substituter_with(&format!("{}/a/?priority=7", server.base()), options());
    assert_eq!(cache.name(), format!("{}/a", server.base()));
    assert_eq!(cache.priority(), Some(7));

    let info = cache.cache_info_text(soon()).await.unwrap().unwrap();
    assert_eq!(info, b"StoreDir: /nix/store\n");
    assert_eq!(narinfo(&cache).await.unwrap().unwrap(), b"StorePath: x\n");
    let listing = cache.listing(&hash(), soon()).await.unwrap().unwrap();
    assert_eq!(
        (&listing.bytes[..], listing.encoding.as_deref()),
        (&b"packed"[..], Some("zstd"))
    );

    for url in [
        "nar/x.nar?token=hunter2".to_owned(),
        server.url("/a/nar/x.nar?token=hunter2"),
    ] {
        let body = cache.nar(&url, None, None, soon()).await.unwrap();
        assert_eq!((body.start, body.total), (0, Some(300_000)));
        assert!(!format!("{body:?}").contains("hunter2"));
        assert_eq!(all(body).await.unwrap(), nar);
    }
    let part = cache
        .nar("nar/x.nar?token=hunter2", Some(1000..2000), None, soon())
        .await
        .unwrap();
    assert_eq!(
        (part.start, part.total, part.coming()),
        (1000, Some(300_000), Some(1000..2000))
    );
    assert_eq!(all(part).await.unwrap(), nar[1000..2000]);
    let rest = Some(299_000..u64::MAX);
    let rest = cache
        .nar("nar/x.nar?token=hunter2", rest, None, soon())
        .await
        .unwrap();
    assert_eq!(all(rest).await.unwrap(), nar[299_000..]);
    let tail = cache
        .nar_tail("nar/x.nar?token=hunter2", 100, soon())
        .await
        .unwrap();
    assert_eq!(tail, (300_000, nar[299_900..].to_vec()));

    let counters = cache.counters();
    assert_eq!(counters.requests(), 8);
    assert_eq!(server.requests().len(), 8);
    let bytes = 21 + 13 + 6 + 2 * 300_000 + 1000 + 1000 + 100;
    assert_eq!((counters.bytes_received(), counters.failures()), (bytes, 0));
    assert_eq!(server.connections(), 1, "connections are kept");
    let agent = concat!("narfs/", env!("CARGO_PKG_VERSION"));
    assert!(
        server
            .requests()
            .iter()
            .all(|r| r.header("user-agent") == Some(agent))
    );
}

#[tokio::test]
async fn absent_is_not_an_error_and_an_error_is_not_absent() {
    let server = Server::start();
    let cache = substituter(&server);
    for status in [403, 404, 410] {
        server.on(NARINFO, Reply::status(status));
        server.on("/nix-cache-info", Reply::status(status));
        assert_eq!(narinfo(&cache).await.unwrap(), None, "{status}");
        assert_eq!(cache.listing(&hash(), soon()).await.unwrap(), None);
        assert_eq!(cache.cache_info_text(soon()).await.unwrap(), None);
    }
    assert_eq!(
        server.connections(),
        1,
        "an absent path costs no connection"
    );
    assert_eq!(cache.counters().failures(), 0);
    for (status, slug) in [
        (400, "status"),
        (401, "denied"),
        (451, "status"),
        (501, "status"),
    ] {
        server.clear();
        server.on(NARINFO, Reply::status(status));
        assert_eq!(narinfo(&cache).await.unwrap_err().slug(), slug, "{status}");
        assert_eq!(server.count(NARINFO), 1, "{status} is final");
    }
    for (status, slug) in [
        (404, "missing"),
        (410, "missing"),
        (403, "denied"),
        (401, "denied"),
    ] {
        server.on(NAR, Reply::status(status));
        let error = cache
            .nar("nar/x.nar", None, None, soon())
            .await
            .unwrap_err();
        assert_eq!((error.slug(), error.retryable()), (slug, false), "{status}");
    }
    let refusal = "<?xml?><Error><Code>SignatureDoesNotMatch</Code></Error>";
    server.on(NARINFO, Reply::status(403).with_body(refusal));
    assert_eq!(narinfo(&cache).await.unwrap_err().slug(), "denied");
    let absence = "<?xml?><Error><Code>AccessDenied</Code></Error>";
    server.on(NARINFO, Reply::status(403).with_body(absence));
    assert_eq!(narinfo(&cache).await.unwrap(), None);
}

#[tokio::test]
async fn passing_failures_are_tried_again() {
    let server = Server::start();
    let cache = substituter(&server);
    let good = || Reply::file("good");
    let busy = Reply::status(429).header("Retry-After", "0");
    server.script(
        NARINFO,
        [
            Reply::status(503),
            busy,
            Reply::reset(),
            good().cut_after(2),
            good(),
        ],
    );
    assert_eq!(narinfo(&cache).await.unwrap().unwrap(), b"good");
    assert_eq!(server.count(NARINFO), 5);
    assert_eq!(
        (cache.counters().requests(), cache.counters().failures()),
        (5, 0)
    );

    server.on(LISTING, Reply::status(500));
    let error = cache.listing(&hash(), soon()).await.unwrap_err();
    assert!(
        matches!(error.failure(), FetchFailure::Status { status: 500, .. }),
        "{error}"
    );
    assert!(error.retryable());
    assert_eq!(server.count(LISTING), 5);

    server.script(NAR, [Reply::status(502), good()]);
    let body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert_eq!(all(body).await.unwrap(), b"good");
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let server = Server::start();
    let cache = substituter(&server);
    server.on(NARINFO, Reply::status(429).header("Retry-After", "3600"));
    let error = narinfo(&cache).await.unwrap_err();
    let hour = Some(Duration::from_secs(3600));
    assert_eq!(
        error.failure(),
        &FetchFailure::Status {
            status: 429,
            retry_after: hour
        }
    );
    assert_eq!(server.count(NARINFO), 1);
}

#[tokio::test]
async fn nothing_waits_without_end() {
    let server = Server::start();
    server.on(NARINFO, Reply::hang());
    let brief = Deadline::after(Duration::from_millis(50));
    let error = substituter(&server)
        .narinfo(&hash(), brief)
        .await
        .unwrap_err();
    assert_eq!(error.slug(), "deadline");

    let cache = substituter_with(&server.base(), impatient());
    assert_eq!(narinfo(&cache).await.unwrap_err().slug(), "stalled");
    let never = Gate::new();
    server.on(NAR, Reply::file(numbers(1000)).pausing_at(10, &never));
    let mut body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap().len(), 10);
    assert_eq!(body.next().await.unwrap_err().slug(), "stalled");
    server.on(
        NAR,
        Reply::file(numbers(1000)).trickle(1, Duration::from_millis(10)),
    );
    let body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert_eq!(all(body).await.unwrap_err().slug(), "stalled");
}

#[tokio::test]
async fn what_is_no_cache_is_called_so() {
    let server = Server::start();
    let cache = substituter(&server);
    server.everything(Some(Reply::html()));
    let errors = [
        cache.cache_info_text(soon()).await.unwrap_err(),
        narinfo(&cache).await.unwrap_err(),
        cache.listing(&hash(), soon()).await.unwrap_err(),
        cache
            .nar("nar/x.nar", None, None, soon())
            .await
            .unwrap_err(),
        cache.nar_tail("nar/x.nar", 10, soon()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.slug(), "not-a-cache");
        assert!(error.to_string().contains(&server.base()), "{error}");
    }
    server.everything(Some(Reply::file("\n <?xml version='1.0'?>")));
    assert_eq!(narinfo(&cache).await.unwrap_err().slug(), "not-a-cache");
}

#[tokio::test]
async fn documents_have_a_limit() {
    let server = Server::start();
    let cache = substituter(&server);
    for reply in [
        Reply::file(vec![b'x'; (1 << 20) + 1]),
        Reply::file(vec![b'x'; 2 << 20]).chunked(),
    ] {
        server.on(NARINFO, reply);
        assert_eq!(narinfo(&cache).await.unwrap_err().slug(), "too-large");
    }
    server.on(NARINFO, Reply::file("x").claiming_length(1 << 40));
    assert_eq!(narinfo(&cache).await.unwrap_err().slug(), "too-large");
    server.on(NARINFO, Reply::file(vec![b'x'; 1 << 20]).chunked());
    assert_eq!(narinfo(&cache).await.unwrap().unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn wrong_ranges_never_pass() {
    let server = Server::start();
    let cache = substituter(&server);
    let nar = numbers(1000);
    let open = |range| cache.nar("nar/x.nar", Some(range), None, soon());

    server.on(NAR, Reply::file(nar.clone()).shifted_range(1));
    assert_eq!(open(100..200).await.unwrap_err().slug(), "protocol");
    assert_eq!(
        cache
            .nar_tail("nar/x.nar", 10, soon())
            .await
            .unwrap_err()
            .slug(),
        "protocol"
    );
    let lying = Reply::status(206).header("Content-Range", "bytes 100-199/1000");
    server.on(NAR, lying);
    assert_eq!(open(100..200).await.unwrap_err().slug(), "protocol");
    server.on(NAR, Reply::status(206));
    assert_eq!(open(100..200).await.unwrap_err().slug(), "protocol");

    server.on(NAR, Reply::file(nar.clone()).ignoring_ranges());
    let body = open(100..200).await.unwrap();
    assert_eq!((body.start, body.total), (0, Some(1000)));
    assert_eq!(all(body).await.unwrap(), nar);
    assert_eq!(
        cache
            .nar_tail("nar/x.nar", 10, soon())
            .await
            .unwrap_err()
            .slug(),
        "no-ranges"
    );
    assert_eq!(
        cache.nar_tail("nar/x.nar", 1000, soon()).await.unwrap(),
        (1000, nar.clone())
    );
    assert_eq!(open(1000..2000).await.unwrap_err().slug(), "out-of-range");

    server.on(NAR, Reply::file(nar.clone()));
    let error = open(1000..2000).await.unwrap_err();
    assert_eq!(
        error.failure(),
        &FetchFailure::OutOfRange { total: Some(1000) }
    );
    assert_eq!(
        all(open(900..2000).await.unwrap()).await.unwrap(),
        nar[900..]
    );
    assert_eq!(open(5..5).await.unwrap_err().slug(), "out-of-range");
    assert_eq!(
        cache.nar_tail("nar/x.nar", 5000, soon()).await.unwrap(),
        (1000, nar)
    );
}

#[tokio::test]
async fn a_short_body_is_an_error() {
    let server = Server::start();
    let cache = substituter(&server);
    let nar = || Reply::file(numbers(100_000));
    for reply in [
        nar().cut_after(70_000),
        nar().claiming_length(100_001),
        nar().chunked().cut_after(70_000),
    ] {
        server.on(NAR, reply);
        let body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
        let error = all(body).await.unwrap_err();
        assert!(
            matches!(error.failure(), FetchFailure::Truncated { .. }),
            "{error:?}"
        );
        assert!(error.retryable());
    }
    let gate = Gate::new();
    server.on(NAR, nar().pausing_at(10, &gate));
    let mut body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert!(body.next().await.unwrap().is_some());
    server.vanish();
    assert_eq!(all(body).await.unwrap_err().slug(), "truncated");
    server.come_back();
    server.on(NAR, nar());
    let rest = cache
        .nar("nar/x.nar", Some(10..u64::MAX), None, soon())
        .await
        .unwrap();
    assert_eq!(all(rest).await.unwrap(), numbers(100_000)[10..]);
}

#[tokio::test]
async fn parts_of_two_files_are_never_joined() {
    let server = Server::start();
    let cache = substituter(&server);
    server.on(NAR, Reply::file(numbers(1000)));
    let first = cache
        .nar("nar/x.nar", Some(0..10), None, soon())
        .await
        .unwrap();
    let validator = first.validator.clone().unwrap();
    let rest = || cache.nar("nar/x.nar", Some(10..20), Some(&validator), soon());
    assert_eq!(rest().await.unwrap().start, 10);
    assert_eq!(
        server.requests()[1].header("if-range"),
        Some(validator.as_str())
    );

    server.on(NAR, Reply::file(numbers(999)));
    assert_eq!(rest().await.unwrap_err().slug(), "changed");
    // A server that takes no notice of If-Range.
    let other = Reply::status(206)
        .header("Content-Range", "bytes 10-19/1000")
        .etag(Some("\"other\""));
    server.on(NAR, other.claiming_length(10));
    assert_eq!(rest().await.unwrap_err().slug(), "changed");
    // One that takes no notice of Range, of the same file.
    server.on(NAR, Reply::file(numbers(1000)).ignoring_ranges());
    assert_eq!(rest().await.unwrap().start, 0);

    server.on(NAR, Reply::file(numbers(1000)).etag(Some("W/\"weak\"")));
    let weak = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert_eq!(weak.validator, None);
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    server.on(
        NAR,
        Reply::file("x").etag(None).header("Last-Modified", date),
    );
    let dated = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert_eq!(dated.validator.as_deref(), Some(date));
}

#[tokio::test]
async fn encodings_are_reported() {
    let server = Server::start();
    let cache = substituter(&server);
    server.on(
        NAR,
        Reply::file("squeezed")
            .header("Content-Encoding", "zstd")
            .ignoring_ranges(),
    );
    let body = cache
        .nar("nar/x.nar", Some(4..8), None, soon())
        .await
        .unwrap();
    assert_eq!(
        (body.start, body.total, body.encoding.as_deref()),
        (0, None, Some("zstd"))
    );
    assert_eq!(all(body).await.unwrap(), b"squeezed");
    assert_eq!(
        server.requests()[0].header("accept-encoding"),
        Some("identity")
    );
    server.on(
        NAR,
        Reply::file("squeezed").header("Content-Encoding", "zstd"),
    );
    let error = cache
        .nar("nar/x.nar", Some(4..8), None, soon())
        .await
        .unwrap_err();
    assert_eq!(error.slug(), "no-ranges");
}

#[tokio::test]
async fn redirects() {
    let (server, other) = (Server::start(), Server::start());
    let cache = substituter(&server);
    other.on("/moved", Reply::file(numbers(100)));
    server.on(NAR, Reply::redirect(other.url("/moved")));
    let body = cache
        .nar("nar/x.nar", Some(10..20), None, soon())
        .await
        .unwrap();
    assert_eq!(all(body).await.unwrap(), numbers(100)[10..20]);
    assert_eq!(other.requests()[0].header("range"), Some("bytes=10-19"));
    assert_eq!(cache.counters().requests(), 2, "a redirect is a request");

    server.on(NAR, Reply::redirect("/nar/y"));
    server.on("/nar/y", Reply::redirect("x.nar"));
    let error = cache
        .nar("nar/x.nar", None, None, soon())
        .await
        .unwrap_err();
    assert_eq!(error.slug(), "redirect-loop");
    for n in 0..20 {
        server.on(
            &format!("/hop/{n}"),
            Reply::redirect(format!("/hop/{}?hunter2", n + 1)),
        );
        server.on(
            &format!("/hop/{n}?hunter2"),
            Reply::redirect(format!("/hop/{}?hunter2", n + 1)),
        );
    }
    server.clear();
    let error = cache.nar("hop/0", None, None, soon()).await.unwrap_err();
    assert_eq!(error.slug(), "redirect-loop");
    assert!(!error.to_string().contains("hunter2"));
    assert_eq!(server.requests().len(), 11);
    for to in ["ftp://h/x", "file:///etc/passwd", "http://[", "data:,x"] {
        server.on(NAR, Reply::redirect(to));
        let error = cache
            .nar("nar/x.nar", None, None, soon())
            .await
            .unwrap_err();
        assert_eq!(error.slug(), "bad-address", "{to}");
    }
    server.on(NAR, Reply::status(302));
    let error = cache
        .nar("nar/x.nar", None, None, soon())
        .await
        .unwrap_err();
    assert!(
        matches!(error.failure(), FetchFailure::Status { status: 302, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let base = Server::start().base();
    let cache = substituter_with(&base, impatient());
    let error = narinfo(&cache).await.unwrap_err();
    assert_eq!(
        (error.slug(), error.retryable()),
        ("connect", true),
        "{error}"
    );
    assert_eq!(cache.counters().failures(), 1);
    let nowhere = substituter_with("http://no-such-host.invalid", impatient());
    let error = narinfo(&nowhere).await.unwrap_err();
    assert_eq!((error.slug(), error.retryable()), ("dns", true), "{error}");
}

#[tokio::test]
async fn small_requests_are_bounded_and_bodies_are_not() {
    let server = Server::start();
    let two = HttpOptions {
        connections: 2,
        ..options()
    };
    let cache = substituter_with(&server.base(), two);
    let gate = Gate::new();
    server.on(NARINFO, Reply::file("x").behind(&gate));
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { narinfo(&cache).await })
        })
        .collect();
    let waiting = gate.clone();
    tokio::task::spawn_blocking(move || waiting.wait_for(2))
        .await
        .unwrap();
    server.on(NAR, Reply::file("nar"));
    let body = cache.nar("nar/x.nar", None, None, soon()).await.unwrap();
    assert_eq!(all(body).await.unwrap(), b"nar");
    assert_eq!(server.count(NARINFO), 2);
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().unwrap(), b"x");
    }
    assert_eq!(server.count(NARINFO), 5);
}

/// The proxy's variables are the process's: this runs [`child_proxy`] in one of its own.
#[test]
fn proxies_of_the_environment() {
    let proxy = Server::start();
    let path = "http://cache.invalid/2j8qw9i2q1p6cmli6976v4wi0sw9r4p5.narinfo";
    proxy.on(path, Reply::file("through the proxy"));
    proxy.on("http://refused.invalid/nix-cache-info", Reply::status(407));
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["child_proxy", "--exact", "--ignored"])
        .env_remove("HTTP_PROXY")
        .env_remove("ALL_PROXY")
        .env_remove("all_proxy")
        .env_remove("NO_PROXY")
        .env("http_proxy", proxy.base().replace("//", "//ada:hunter2@"))
        .env("no_proxy", "127.0.0.1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    let told = &proxy.requests_for(path)[0];
    assert_eq!(
        told.header("proxy-authorization"),
        Some("Basic YWRhOmh1bnRlcjI=")
    );
    assert_eq!(told.header("authorization"), None);
}

#[tokio::test]
#[ignore = "run by proxies_of_the_environment with an environment of its own"]
async fn child_proxy() {
    let options = || HttpOptions {
        proxy_from_environment: true,
        ..options()
    };
    let cache = substituter_with("http://cache.invalid", options());
    assert_eq!(
        narinfo(&cache).await.unwrap().unwrap(),
        b"through the proxy"
    );
    let refused = substituter_with("http://refused.invalid", options());
    let error = refused.cache_info_text(soon()).await.unwrap_err();
    assert_eq!(error.slug(), "proxy-denied");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    let server = Server::start();
    server.on(NARINFO, Reply::file("directly"));
    let direct = substituter_with(&server.base(), options());
    assert_eq!(narinfo(&direct).await.unwrap().unwrap(), b"directly");
}
