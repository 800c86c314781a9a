//! Who is told what: credentials on every kind of request, on none to others, never shown.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use narfs::{
    nix::StorePathHash,
    substituter::{
        Deadline, FetchFailure, HttpOptions, Secret, Substituter, SubstituterConfig,
        SubstituterError, Transport,
    },
};
use support::scripted::{Reply, Server, certificate};

/// `ada:hunter2` and `token:` in base 64.
const ADA: &str = "Basic YWRhOmh1bnRlcjI=";

fn hash() -> StorePathHash {
    StorePathHash::parse(b"2j8qw9i2q1p6cmli6976v4wi0sw9r4p5").unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn options(netrc: Option<PathBuf>) -> HttpOptions {
    HttpOptions {
        netrc,
        proxy_from_environment: false,
        ..HttpOptions::default()
    }
}

fn netrc(directory: &tempfile::TempDir, text: &str) -> Option<PathBuf> {
    let path = directory.path().join("netrc");
    fs::write(&path, text).unwrap();
    Some(path)
}

fn cache(config: SubstituterConfig, options: HttpOptions) -> Substituter {
    Substituter::new(&config, &Transport::new(options).unwrap()).unwrap()
}

fn at(url: impl Into<String>) -> SubstituterConfig {
    SubstituterConfig {
        url: url.into(),
        ..SubstituterConfig::default()
    }
}

/// Makes one request of each kind, with whatever result.
async fn every_kind(cache: &Substituter) {
    let _ = cache.cache_info_text(soon()).await;
    let _ = cache.narinfo(&hash(), soon()).await;
    let _ = cache.listing(&hash(), soon()).await;
    let _ = cache.nar("nar/x.nar", None, None, soon()).await;
    let _ = cache.nar("nar/x.nar", Some(1..2), None, soon()).await;
    let _ = cache.nar_tail("nar/x.nar", 1, soon()).await;
}

/// What the server was told, request by request.
fn told(server: &Server) -> Vec<Option<String>> {
    let requests = server.requests();
    requests
        .iter()
        .map(|r| r.header("authorization").map(Into::into))
        .collect()
}

#[tokio::test]
async fn every_kind_of_request_carries_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = netrc(&directory, "machine 127.0.0.1 login ada password hunter2\n");
    let token_file = directory.path().join("token");
    fs::write(&token_file, "hunter2\n").unwrap();
    let token = Some(Secret::new("hunter2"));
    let server = Server::start();
    let with_login = server.base().replace("//", "//ada:hunter2@");
    let with_user = server.base().replace("//", "//ada@");
    let plain = || at(server.base());
    let bearer = "Bearer hunter2";
    let cases = [
        (plain(), file.clone(), ADA),
        (at(with_login), None, ADA),
        (at(with_user), file.clone(), ADA),
        (SubstituterConfig { token, ..plain() }, file.clone(), bearer),
        (
            SubstituterConfig {
                token_file: Some(token_file),
                ..plain()
            },
            None,
            bearer,
        ),
    ];
    for (config, file, expected) in cases {
        server.clear();
        let cache = cache(config, options(file));
        every_kind(&cache).await;
        assert_eq!(told(&server), vec![Some(expected.to_owned()); 6]);
        assert_eq!(cache.name(), server.base());
    }
}

#[tokio::test]
async fn nobody_else_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let text = "machine 127.0.0.1 login ada password hunter2\ndefault login ada password hunter2\n";
    let (server, other) = (Server::start(), Server::start());
    let cache = cache(at(server.base()), options(netrc(&directory, text)));
    // Another port, and another name of the same server.
    for elsewhere in [other.base(), server.url_on("localhost", "/else")] {
        server.clear();
        for path in [
            "/nix-cache-info",
            "/2j8qw9i2q1p6cmli6976v4wi0sw9r4p5.narinfo",
            "/2j8qw9i2q1p6cmli6976v4wi0sw9r4p5.ls",
            "/nar/x.nar",
        ] {
            server.on(path, Reply::redirect(format!("{elsewhere}{path}")));
        }
        every_kind(&cache).await;
        let (own, others): (Vec<_>, Vec<_>) = [server.requests(), other.requests()]
            .concat()
            .into_iter()
            .partition(|r| {
                !r.path.starts_with("/else")
                    && r.header("host") == server.base().strip_prefix("http://")
            });
        assert_eq!((own.len(), others.len()), (6, 6));
        assert!(own.iter().all(|r| r.header("authorization") == Some(ADA)));
        assert!(others.iter().all(|r| r.header("authorization").is_none()));
        other.clear();
    }
    // A redirect on the same server keeps them.
    server.clear();
    server.on("/nar/x.nar", Reply::redirect("/moved"));
    let _ = cache.nar("nar/x.nar", None, None, soon()).await;
    assert_eq!(told(&server), vec![Some(ADA.to_owned()); 2]);
    // A narinfo that names another host: not the default entry, but one for it.
    server.clear();
    let _ = cache
        .nar(&server.url_on("localhost", "/nar/y"), None, None, soon())
        .await;
    assert_eq!(told(&server), [None]);
    let _ = cache.nar(&other.url("/nar/y"), None, None, soon()).await;
    assert_eq!(told(&other), [Some(ADA.to_owned())], "netrc knows no ports");
}

#[tokio::test]
async fn https_is_never_left() {
    let (safe, open) = (Server::start_tls(), Server::start());
    let trusting = HttpOptions {
        ssl_cert_file: Some(certificate()),
        ..options(None)
    };
    let token = Some(Secret::new("hunter2"));
    let cache = cache(
        SubstituterConfig {
            token,
            ..at(safe.base())
        },
        trusting,
    );
    safe.on("/nar/x.nar", Reply::file("over TLS"));
    let body = cache
        .nar("nar/x.nar", Some(5..8), None, soon())
        .await
        .unwrap();
    assert_eq!((body.start, body.total), (5, Some(8)));
    assert_eq!(told(&safe), [Some("Bearer hunter2".to_owned())]);
    safe.on("/nar/y.nar", Reply::redirect(open.url("/nar/y.nar")));
    for url in ["nar/y.nar".to_owned(), open.url("/nar/y.nar")] {
        let error = cache.nar(&url, None, None, soon()).await.unwrap_err();
        assert!(
            matches!(error.failure(), FetchFailure::Downgrade(_)),
            "{error}"
        );
    }
    assert_eq!(open.requests().len(), 0);
}

#[tokio::test]
async fn a_certificate_that_nobody_trusts_is_final() {
    let server = Server::start_tls();
    let cache = cache(at(server.base()), options(None));
    let error = cache.narinfo(&hash(), soon()).await.unwrap_err();
    assert_eq!((error.slug(), error.retryable()), ("tls", false), "{error}");
    assert_eq!(cache.counters().requests(), 1);
    let missing = HttpOptions {
        ssl_cert_file: Some("/nowhere".into()),
        ..options(None)
    };
    let error = Transport::new(missing).unwrap_err();
    assert!(
        matches!(error, SubstituterError::Certificates { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn secrets_can_be_exchanged_while_we_run() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start();
    server.decide("/nix-cache-info", |request| {
        match request.header("authorization") {
            Some("Bearer new" | "Basic YWRhOm5ldw==") => Reply::file("StoreDir: /nix/store"),
            _ => Reply::status(401),
        }
    });
    let token = directory.path().join("token");
    fs::write(&token, "old").unwrap();
    let file = netrc(&directory, "machine 127.0.0.1 login ada password old");
    let with_token = SubstituterConfig {
        token_file: Some(token.clone()),
        ..at(server.base())
    };
    let caches = [
        cache(with_token, options(None)),
        cache(at(server.base()), options(file)),
    ];
    for cache in &caches {
        assert_eq!(
            cache.cache_info_text(soon()).await.unwrap_err().slug(),
            "denied"
        );
        assert_eq!(cache.counters().requests(), 1, "nothing new, nothing tried");
    }
    fs::write(&token, "new\n").unwrap();
    netrc(&directory, "machine 127.0.0.1 login ada password new");
    for cache in &caches {
        let (one, two) = tokio::join!(cache.cache_info_text(soon()), cache.cache_info_text(soon()));
        assert!(
            one.unwrap().is_some() && two.unwrap().is_some(),
            "refused at the same time"
        );
        let before = cache.counters().requests();
        assert!(cache.cache_info_text(soon()).await.unwrap().is_some());
        assert_eq!(
            cache.counters().requests(),
            before + 1,
            "the new ones are kept"
        );
    }
}

#[tokio::test]
async fn no_secret_is_ever_shown() {
    let directory = tempfile::tempdir().unwrap();
    let text = "machine 127.0.0.1 login ada password hunter2\n";
    let server = Server::start();
    server.everything(Some(Reply::status(401)));
    let url = format!(
        "{}/?token=hunter2",
        server.base().replace("//", "//ada:hunter2@")
    );
    let config = SubstituterConfig {
        token: Some(Secret::new("hunter2")),
        ..at(url)
    };
    let transport = Transport::new(options(netrc(&directory, text))).unwrap();
    let cache = Substituter::new(&config, &transport).unwrap();
    let url = "nar/x.nar?sig=hunter2";
    let mut shown = vec![
        format!("{cache:?} {transport:?} {config:?}"),
        cache.name().to_owned(),
    ];
    let error = cache.nar(url, None, None, soon()).await.unwrap_err();
    shown.push(format!("{error} {error:?}"));
    server.everything(Some(Reply::reset()));
    let brief = Deadline::after(Duration::from_millis(50));
    let error = cache.nar(url, None, None, brief).await.unwrap_err();
    shown.push(format!("{error} {error:?}"));
    drop(server);
    let error = cache.nar(url, None, None, brief).await.unwrap_err();
    shown.push(format!("{error} {error:?}"));
    let bad = SubstituterConfig {
        token: Some(Secret::new("hunter2\n\u{1}")),
        ..config
    };
    let error = Substituter::new(&bad, &transport).unwrap_err();
    shown.push(format!("{error} {error:?}"));
    for text in shown {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn secret_files_that_cannot_be_read_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    Transport::new(options(Some(absent.clone()))).unwrap();
    let transport = Transport::new(options(None)).unwrap();
    let config = SubstituterConfig {
        token_file: Some(absent),
        ..at("http://h")
    };
    let error = Substituter::new(&config, &transport).unwrap_err();
    assert!(matches!(error, SubstituterError::Secrets { .. }), "{error}");
    // A directory cannot be read even by root.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Transport::new(options(Some(directory.path().into()))).unwrap_err();
    assert!(matches!(error, SubstituterError::Secrets { .. }), "{error}");
}
