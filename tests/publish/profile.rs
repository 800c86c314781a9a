//! Access profiles: recorded by one start, published, and followed by the next one elsewhere.

use std::{fs, path::Path};

use crate::{
    corpus,
    lazy::{of_nars, started},
    support::{
        cache::{Cache, Packing, key},
        scripted::{Reply, Server},
    },
    world::{Place, chain, url},
};

/// Most that a start with a profile may bring of NARs, as a part of what the recorded one read in
/// chunks: 1.02 when this was written, and the reads of two starts differ a little.
const MOST_BEYOND: f64 = 1.2;

/// Runs `narfs profile` with the state directory `state`, expects success, and gives its output.
fn profile(place: &Place, state: &str, arguments: &[&str]) -> String {
    let mut command = place.command(&["profile"]);
    command
        .args(arguments)
        .arg("--state-dir")
        .arg(place.path(state));
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Packed bytes of the chunks that what `profile` names lies in.
fn chunks(cache: &Path, profile: &narfs::profile::Profile) -> u64 {
    let mut chunks = std::collections::BTreeSet::new();
    for read in &profile.reads {
        let hash = read.path.hash();
        let text = fs::read(cache.join(format!("{hash}.narinfo"))).unwrap();
        let url = narfs::nix::NarInfo::parse(&text, &hash).unwrap().url;
        let file = fs::read(cache.join(&url)).unwrap();
        let table = seek_table(&file);
        for range in &read.ranges {
            for (packed, unpacked) in &table {
                if unpacked.0 < range.end && range.start < unpacked.1 {
                    chunks.insert((url.clone(), *packed));
                }
            }
        }
    }
    chunks.iter().map(|(_, (start, end))| end - start).sum()
}

type Span = (u64, u64);

/// Where each frame lies, packed and unpacked, by the table at the file's end ("Zstandard Seekable
/// Format" 0.1.0: number of frames, a descriptor, a magic number; before them 8 bytes a frame, or 12
/// with checksums).
fn seek_table(file: &[u8]) -> Vec<(Span, Span)> {
    let word = |at: usize| u64::from(u32::from_le_bytes(file[at..at + 4].try_into().unwrap()));
    let footer = file.len() - 9;
    assert_eq!(word(footer + 5), 0x8F92_EAB1);
    let frames = word(footer) as usize;
    let size = if file[footer + 4] & 0x80 != 0 { 12 } else { 8 };
    let (mut packed, mut unpacked) = (0, 0);
    (0..frames)
        .map(|frame| {
            let at = footer - (frames - frame) * size;
            let begin = (packed, unpacked);
            packed += word(at);
            unpacked += word(at + 4);
            ((begin.0, packed), (begin.1, unpacked))
        })
        .collect()
}

#[test]
fn what_one_start_read_comes_first_at_the_next_one_elsewhere() {
    let place = Place::new();
    let root = corpus::store_path("python3.11");
    let root_text = root.display().to_string();
    let cache = place.path("cache");
    let (from, to) = (url(&corpus::cache("zstd")), url(&cache));
    let key = corpus::public_key();
    let publish = ["--trusted-key", &key, &root_text];
    place.published(&from, &to, &publish);
    let server = Server::start();
    server.directory(&cache);

    // Nobody knows anything: recorded.
    started(&place, &server, "first", &[]);
    let unguided = of_nars(&server, &cache);
    let beside = format!(
        "/{}.profile",
        &root.file_name().unwrap().to_str().unwrap()[..32]
    );
    assert_eq!(server.count(&beside), 1, "the cache is asked once");
    let list: serde_json::Value =
        serde_json::from_str(&profile(&place, "first", &["list", "--json"])).unwrap();
    assert_eq!(list[0]["storePath"], root_text.as_str());
    assert!(list[0]["bytes"].as_u64().unwrap() > 10_000_000, "{list}");
    let text = profile(&place, "first", &["export", &root_text]);
    let recorded = narfs::profile::Profile::parse(text.as_bytes()).unwrap();

    // Published.
    let file = place.path("python.profile");
    fs::write(&file, &text).unwrap();
    let with = [&publish[..], &["--profile", file.to_str().unwrap()]].concat();
    place.published(&from, &to, &with);
    assert_eq!(fs::read_to_string(cache.join(&beside[1..])).unwrap(), text);

    // Elsewhere.
    server.clear();
    started(&place, &server, "second", &[]);
    let guided = of_nars(&server, &cache);
    let touched = chunks(&cache, &recorded);
    eprintln!(
        "{} bytes of {touched} in chunks that are touched, {} without a profile",
        guided.1, unguided.1
    );
    assert!(
        guided.1 as f64 <= touched as f64 * MOST_BEYOND,
        "{} of {touched}",
        guided.1
    );
    assert!(guided.1 < unguided.1, "{} and {}", guided.1, unguided.1);
    assert_eq!(server.count(&beside), 1);

    // Imported, by who asks no cache for it.
    server.clear();
    profile(&place, "third", &["import", file.to_str().unwrap()]);
    started(&place, &server, "third", &["--profiles", "local"]);
    let imported = of_nars(&server, &cache);
    assert!(
        imported.1 as f64 <= touched as f64 * MOST_BEYOND,
        "{}",
        imported.1
    );
    assert_eq!(server.count(&beside), 0);
    profile(&place, "third", &["forget", &root_text]);
    assert_eq!(profile(&place, "third", &["list"]), "");

    // Not wanted.
    server.clear();
    started(&place, &server, "fourth", &["--profiles", "off"]);
    assert_eq!(server.count(&beside), 0);
    assert!(of_nars(&server, &cache).1 > guided.1);
    assert_eq!(profile(&place, "fourth", &["list"]), "");
}

#[test]
fn a_profile_that_is_wrong_costs_bytes_and_nothing_else() {
    let place = Place::new();
    let root = corpus::store_path("python3.11");
    let name = root.file_name().unwrap().to_str().unwrap();
    let cache = place.path("cache");
    let key = corpus::public_key();
    let publish = ["--trusted-key", &key, &root.display().to_string()];
    place.published(&url(&corpus::cache("zstd")), &url(&cache), &publish);
    let server = Server::start();
    server.directory(&cache);
    let beside = format!("/{}.profile", &name[..32]);
    let stranger = "0000000000000000000000000000000z-stranger";
    let wrong = [
        Reply::html(),
        Reply::status(500),
        Reply::hang(),
        Reply::file("{\"version\":7}"),
        Reply::file(format!(
            "{{\"version\":1,\"root\":\"{stranger}\",\"reads\":[]}}"
        )),
        // It names a path of nobody's closure, all of a NAR and more, and nothing that is read.
        Reply::file(format!(
            "{{\"version\":1,\"root\":\"{name}\",\"reads\":[{{\"path\":\"{stranger}\",\"nar\":[[0,10]]}},\
             {{\"path\":\"{name}\",\"nar\":[[31000000,281474976710656]]}}]}}"
        )),
    ];
    for (number, reply) in wrong.into_iter().enumerate() {
        server.clear();
        server.on(&beside, reply);
        started(&place, &server, &format!("state-{number}"), &[]);
        assert!(server.count(&beside) > 0, "{number}");
        let asked =
            |request: &crate::support::scripted::Request| request.path.contains(&stranger[..32]);
        assert!(!server.requests().iter().any(asked), "{number}");
    }
}

#[test]
fn a_profile_is_published_beside_its_own_path_only() {
    let place = Place::new();
    let root = corpus::store_path("python3.11");
    let file = place.path("other.profile");
    let other = "0000000000000000000000000000000z-other";
    fs::write(
        &file,
        format!("{{\"version\":1,\"root\":\"{other}\",\"reads\":[]}}"),
    )
    .unwrap();
    let publish = |profile: &Path| {
        let key = corpus::public_key();
        let arguments = [
            "--trusted-key",
            &key,
            &root.display().to_string(),
            "--profile",
        ];
        let (from, to) = (url(&corpus::cache("zstd")), url(&place.path("cache")));
        let mut command = place.publish(&from, &to, &arguments);
        let output = command.arg(profile).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let errors = publish(&file);
    assert!(
        errors.contains(other) && errors.contains("not published"),
        "{errors}"
    );
    fs::write(&file, "no profile").unwrap();
    let errors = publish(&file);
    assert!(errors.contains("is no access profile"), "{errors}");
    assert!(!place.path("cache").exists());
}

#[test]
fn a_script_that_sets_the_stage_has_a_profile_too() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(2, 300_000);
    source.add_all(&packages, Packing::Zstd);
    let top = &packages.last().unwrap().path;
    let cache = place.path("cache");
    let arguments = ["--trusted-key", &key.public(), &top.absolute()];
    place.published(&url(source.path()), &url(&cache), &arguments);
    let server = Server::start();
    server.directory(&cache);
    let mut command = place.command(&["--cache", &server.base(), "--trusted-key"]);
    command.arg(place.key.public()).arg("--state-dir");
    command.arg(place.path("state")).arg("run");
    let output = command
        .arg(format!("{}/bin/there-is-none", top.absolute()))
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(0));
    // Of a few bytes, it has no use for its chunk index; that it starts something is known all the same.
    let beside = format!("/{}.profile", top.hash());
    let begun = std::time::Instant::now();
    while server.count(&beside) == 0 {
        assert!(begun.elapsed().as_secs() < 30, "{:?}", server.requests());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
