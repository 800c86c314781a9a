//! Caches in directories: one that the real `nix copy` wrote, and broken ones.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use narfs::{
    nix::StorePathHash,
    substituter::{
        Deadline, FetchError, HttpOptions, NarBody, Substituter, SubstituterConfig, Transport,
    },
};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn cache(url: impl Into<String>) -> Substituter {
    let config = SubstituterConfig {
        url: url.into(),
        ..SubstituterConfig::default()
    };
    Substituter::new(&config, &Transport::new(HttpOptions::default()).unwrap()).unwrap()
}

async fn all(mut body: NarBody) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Adds a file to a store in `directory` and copies it into a cache there; the store path's hash.
fn nix_copy(directory: &Path) -> (PathBuf, StorePathHash) {
    let nix = |arguments: &[&str]| {
        let output = Command::new("nix")
            .args(["--extra-experimental-features", "nix-command", "--store"])
            .arg(directory.join("store"))
            .args(arguments)
            .env("HOME", directory)
            .output()
            .unwrap_or_else(|error| {
                panic!("cannot run nix ({error}); install nix to run this test")
            });
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let data: Vec<u8> = (0..400_000u32).map(|i| (i / 251 + i) as u8).collect();
    fs::write(directory.join("data"), data).unwrap();
    let source = directory.join("data");
    let path = nix(&["store", "add-file", source.to_str().unwrap()]);
    let cache = directory.join("cache");
    let to = format!(
        "file://{}?compression=none&write-nar-listing=1",
        cache.display()
    );
    nix(&["copy", "--to", &to, &path]);
    let digits = &path.rsplit('/').next().unwrap()[..32];
    (cache, StorePathHash::parse(digits.as_bytes()).unwrap())
}

#[tokio::test]
async fn reads_what_nix_copy_writes() {
    let directory = tempfile::tempdir().unwrap();
    let (root, hash) = nix_copy(directory.path());
    for url in [
        format!("file://{}", root.display()),
        root.display().to_string(),
    ] {
        let cache = cache(url);
        assert_eq!(cache.name(), format!("file://{}", root.display()));
        let info = cache.cache_info_text(soon()).await.unwrap().unwrap();
        assert!(info.starts_with(b"StoreDir: /nix/store"));
        let narinfo = cache.narinfo(&hash, soon()).await.unwrap().unwrap().bytes;
        let narinfo = String::from_utf8(narinfo).unwrap();
        let listing = cache.listing(&hash, soon()).await.unwrap().unwrap().bytes;
        assert!(listing.starts_with(b"{"));
        let url = narinfo
            .lines()
            .find_map(|line| line.strip_prefix("URL: "))
            .unwrap();
        let nar = fs::read(root.join(url)).unwrap();
        assert!(nar.len() > 400_000);

        let body = cache.nar(url, None, None, soon()).await.unwrap();
        assert_eq!((body.start, body.total), (0, Some(nar.len() as u64)));
        let validator = body.validator.clone().unwrap();
        assert_eq!(all(body).await.unwrap(), nar);
        let range = Some(300_000..u64::MAX);
        let part = cache
            .nar(url, range.clone(), Some(&validator), soon())
            .await
            .unwrap();
        assert_eq!(part.start, 300_000);
        assert_eq!(all(part).await.unwrap(), nar[300_000..]);
        let tail = cache.nar_tail(url, 100, soon()).await.unwrap();
        assert_eq!(tail, (nar.len() as u64, nar[nar.len() - 100..].to_vec()));
        let beyond = cache
            .nar(url, Some(1 << 30..u64::MAX), None, soon())
            .await
            .unwrap_err();
        assert_eq!(beyond.slug(), "out-of-range");

        let absent = StorePathHash::from_bytes([0; 20]);
        assert_eq!(cache.narinfo(&absent, soon()).await.unwrap(), None);
        assert_eq!(cache.listing(&absent, soon()).await.unwrap(), None);
        let missing = cache
            .nar("nar/absent", None, None, soon())
            .await
            .unwrap_err();
        assert_eq!(missing.slug(), "missing");

        fs::write(root.join(url), "another file").unwrap();
        let changed = cache
            .nar(url, range, Some(&validator), soon())
            .await
            .unwrap_err();
        assert_eq!(changed.slug(), "changed");
        fs::write(root.join(url), nar).unwrap();
    }
}

#[tokio::test]
async fn an_error_is_not_absence() {
    let directory = tempfile::tempdir().unwrap();
    let hash = StorePathHash::from_bytes([0; 20]);
    let narinfo = directory.path().join(format!("{hash}.narinfo"));
    let cache = cache(directory.path().display().to_string());
    assert_eq!(cache.narinfo(&hash, soon()).await.unwrap(), None);

    // Each of these is there, and cannot be read, even by root.
    fs::create_dir(&narinfo).unwrap();
    assert_eq!(cache.narinfo(&hash, soon()).await.unwrap_err().slug(), "io");
    fs::remove_dir(&narinfo).unwrap();
    symlink(&narinfo, &narinfo).unwrap();
    assert_eq!(cache.narinfo(&hash, soon()).await.unwrap_err().slug(), "io");
    fs::remove_file(&narinfo).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&narinfo)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(cache.narinfo(&hash, soon()).await.unwrap_err().slug(), "io");
    fs::remove_file(&narinfo).unwrap();
    fs::write(&narinfo, vec![b'x'; (1 << 20) + 1]).unwrap();
    assert_eq!(
        cache.narinfo(&hash, soon()).await.unwrap_err().slug(),
        "too-large"
    );

    // A cache whose disk is not mounted has not lost its paths.
    directory.close().unwrap();
    let error = cache.narinfo(&hash, soon()).await.unwrap_err();
    assert_eq!(error.slug(), "io", "{error}");
}

#[tokio::test]
async fn a_narinfo_cannot_lead_out_of_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("cache");
    fs::create_dir(&root).unwrap();
    fs::write(directory.path().join("secret"), "secret").unwrap();
    let cache = cache(root.display().to_string());
    let complete = format!("file://{}/secret", directory.path().display());
    for url in [
        "../secret",
        "nar/../../secret",
        "",
        "/",
        ".",
        "x\0",
        &complete,
        "http://h/x",
    ] {
        let error = cache.nar(url, None, None, soon()).await.unwrap_err();
        assert_eq!(error.slug(), "bad-address", "{url}");
    }
    let absolute = directory.path().join("secret");
    let error = cache
        .nar(absolute.to_str().unwrap(), None, None, soon())
        .await
        .unwrap_err();
    assert_eq!(
        error.slug(),
        "missing",
        "an absolute path is one inside the cache"
    );
}
