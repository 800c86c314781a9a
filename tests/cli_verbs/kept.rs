//! `status`, `prefetch`, `check`: what is kept in the state directory.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
};

use narfs_state_schema::{PathState, PathStatus, Summary};

use crate::{
    run::{Ended, Packages, Place, Running, at, nars, serve},
    support::{
        cache::{Cache, Packing, key},
        scripted::Reply,
    },
};

#[derive(serde::Deserialize)]
struct Document {
    summary: Summary,
    paths: Vec<PathStatus>,
}

fn document(done: Ended) -> Document {
    serde_json::from_slice(&done.out).expect("in the form of the status files")
}

fn states(document: &Document) -> Vec<(String, PathState)> {
    document
        .paths
        .iter()
        .map(|p| (p.store_path.clone(), p.state))
        .collect()
}

#[test]
fn nothing_kept_is_shown_as_nothing_and_makes_nothing() {
    let place = Place::bare();
    assert_eq!(place.run(&["status"]).with(0).text(), "");
    assert_eq!(
        document(place.run(&["status", "--json"]).with(0))
            .summary
            .paths
            .total,
        0
    );
    assert_eq!(place.run(&["check"]).with(0).text(), "");
    place.run(&["gc"]).with(0);
    let unknown = place
        .run(&["status", "/nix/store/00000000000000000000000000000000-x"])
        .with(3);
    assert!(unknown.err.contains("is not known here"), "{}", unknown.err);
    assert!(!place.state().exists(), "looking made a state directory");
    place.assert_clean();
}

#[test]
fn prefetch_brings_a_closure_whole_and_only_once() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let done = place
        .run(&["prefetch", "--closure", &at(&packages.app, "")])
        .with(0);
    assert!(done.text().is_empty(), "progress belongs to standard error");
    assert!(
        done.err.contains("3 of 3 paths") && done.err.contains("(100%)"),
        "{}",
        done.err
    );
    assert_eq!(nars(&server).len(), 3);
    server.clear();
    let quiet = place
        .run(&["prefetch", "-qc", &at(&packages.app, "")])
        .with(0);
    assert_eq!(
        (quiet.err.as_str(), server.requests().len()),
        ("", 0),
        "everything was here"
    );
    server.vanish();
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    let shown = document(place.run(&["status", "--json"]).with(0));
    assert_eq!(
        (shown.summary.paths.complete, shown.summary.paths.total),
        (3, 3)
    );
    assert!(
        shown
            .paths
            .iter()
            .all(|p| p.verified && p.fetched_size == p.size && p.files.is_some())
    );
    // Neither the caches nor the key have to be known for it.
    let mut stranger = place;
    stranger.flags.clear();
    let columns = stranger.run(&["status", &at(&packages.lib, "")]).with(0);
    let size = packages.lib.nar.len();
    assert_eq!(
        columns.text(),
        format!(
            "complete\t100.00\t{size}\t{size}\t{}\t\n",
            packages.lib.path.absolute()
        )
    );
}

#[test]
fn prefetch_brings_what_it_can_and_names_what_it_cannot() {
    let (key, packages) = (key(), Packages::new());
    let cache = Cache::new(&key);
    cache.add_all([&packages.app, &packages.lib], Packing::Zstd);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    let done = place
        .run(&["prefetch", "-c", &at(&packages.app, "")])
        .with(3);
    let absent = format!(
        "{} is in none of the caches ({})",
        packages.data.path,
        server.base()
    );
    assert!(
        done.err.contains(&absent) && done.err.contains("hint: "),
        "{}",
        done.err
    );
    let shown = document(place.run(&["status", "--json"]).with(0));
    let mut want: Vec<_> = [&packages.app, &packages.lib]
        .map(|p| (p.path.absolute(), PathState::Complete))
        .into();
    want.sort();
    assert_eq!(states(&shown), want);
    server.on(&packages.data.narinfo_url(), Reply::status(500));
    let fresh = Place::over(&key, &[&server.base()]);
    fresh
        .run(&["prefetch", "-q", &at(&packages.data, "")])
        .with(5);
}

#[test]
fn a_running_daemon_answers() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let daemon = place.daemon();
    let done = place
        .run(&["prefetch", "-c", &at(&packages.app, "")])
        .with(0);
    assert!(done.err.contains("3 of 3 paths"), "{}", done.err);
    let shown = document(place.run(&["status", "--json"]).with(0));
    assert_eq!(shown.summary.daemon.pid, daemon.0.id());
    assert_eq!(shown.summary.paths.complete, 3);
    assert_eq!(place.run(&["check"]).with(0).lines().len(), 3);
    let absent = place
        .run(&["prefetch", "/nix/store/00000000000000000000000000000000-x"])
        .with(3);
    assert!(
        absent.err.contains("hint: "),
        "the daemon's hint comes along: {}",
        absent.err
    );
    place
        .run(&["status", "/nix/store/00000000000000000000000000000000-x"])
        .with(3);
    place
        .run(&["check", "/nix/store/00000000000000000000000000000000-x"])
        .with(3);
}

#[test]
fn watching_goes_on_until_nobody_reads() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    let mut command = place.command(&["status", "--watch", "--json", "--interval", "10ms"]);
    let mut running = Running(command.spawn().unwrap());
    let mut out = BufReader::new(running.0.stdout.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let shown: Document = serde_json::from_str(&line).expect("one document a line");
        assert_eq!(shown.paths.len(), 1);
    }
    drop(out);
    running.ended().with(0);
}

/// Changes a byte of the only archive that is kept.
fn damage(place: &Place) {
    let kept = place.content(".nar");
    assert_eq!(kept.len(), 1);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&kept[0])
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[!byte[0]], 5000).unwrap();
}

#[test]
fn check_finds_damage_drops_it_and_repairs_it() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let lib = at(&packages.lib, "");
    place.run(&["prefetch", "-q", &lib]).with(0);
    let size = packages.lib.nar.len();
    assert_eq!(
        place.run(&["check"]).with(0).text(),
        format!("sound\t{size}\t{lib}\t\n")
    );
    damage(&place);
    let bad = place.run(&["check", "--json", &lib]).with(1);
    assert!(bad.err.contains("1 path is damaged"), "{}", bad.err);
    let report = bad.json();
    assert_eq!(
        (&report[0]["storePath"], &report[0]["condition"]),
        (&lib.as_str().into(), &"damaged".into())
    );
    let problem = report[0]["problem"].as_str().unwrap();
    assert!(problem.contains("changed on the disk"), "{problem}");
    // One block is all of it.
    assert_eq!(
        place.run(&["check"]).with(0).text(),
        "",
        "what is damaged was dropped"
    );

    place.run(&["prefetch", "-q", &lib]).with(0);
    damage(&place);
    server.vanish();
    let offline = place.run(&["check", "--repair"]).with(5);
    assert!(offline.text().starts_with("damaged\t") && offline.text().contains("not repaired: "));
    server.come_back();
    place.run(&["prefetch", "-q", &lib]).with(0);
    damage(&place);
    let repaired = place.run(&["check", "--repair"]).with(0);
    assert!(
        repaired.text().starts_with("repaired\t"),
        "{}",
        repaired.text()
    );
    assert!(place.run(&["check"]).with(0).text().starts_with("sound\t"));
}

#[test]
fn check_finds_damaged_trees_and_leaves_partial_content_alone() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let data = at(&packages.data, "");
    server.on(
        &packages.data.nar_url(Packing::Zstd),
        Reply::as_it_is().cut_after(2 << 20),
    );
    place.run(&["prefetch", "-q", &data]).with(5);
    let partial = place.run(&["check"]).with(0);
    assert!(
        partial.text().starts_with("partial\t"),
        "{}",
        partial.text()
    );
    assert!(
        place
            .run(&["status"])
            .with(0)
            .text()
            .starts_with("partial\t")
    );
    let tree = &place.content(".index")[0];
    let mut image = fs::read(tree).unwrap();
    image.truncate(image.len() / 2);
    fs::write(tree, image).unwrap();
    let bad = place.run(&["check"]).with(1);
    assert!(bad.text().contains("compiled tree"), "{}", bad.text());
    assert!(place.content(".index").is_empty());
}
