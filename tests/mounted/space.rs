//! Too little room, and a disk that does not keep what it is given: programs notice nothing of it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::fs::{Advice, fadvise};

use crate::{
    corpus,
    lifecycle::{Tmpfs, fill},
    mounted::{Mounted, Setup, run, wait_until},
    programs::from_the_mount,
    snapshot::{assert_same, snapshot},
    truth,
};

fn setup(cache: &str) -> Setup {
    let url = format!("file://{}", corpus::cache(cache).display());
    Setup::new(url, corpus::public_key())
}

/// Files in `content/` with this ending.
fn content(mounted: &Mounted, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(mounted.state_dir().join("content")).expect("it is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect()
}

/// Makes the kernel forget what it has of a file.
fn forget_pages(path: &Path) {
    let file = fs::File::open(path).expect("it opens");
    // What is dirty stays: not there on a mount that can't be written.
    let _ = file.sync_all();
    fadvise(&file, 0, None, Advice::DontNeed).expect("advice is taken");
}

/// Changes a byte of every 100,000, as a disk might.
fn damage(path: &Path) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("it opens");
    let size = file.metadata().expect("it is there").size();
    for at in (777..size).step_by(100_000) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x40], at).expect("written");
    }
    forget_pages(path);
}

#[test]
fn bits_that_flip_on_the_disk_reach_no_reader() {
    let root = corpus::store_path("redis-server");
    let program = root.join("bin/redis-server");
    for cache in ["none", "zstd"] {
        let mounted = Mounted::start(setup(cache));
        let right = fs::read(mounted.at(&program)).expect("it reads");
        // Comes back only if all of it has the hash that was signed.
        let mut prefetch = mounted.narfs();
        prefetch.args(["prefetch", "--quiet"]).arg(&root);
        run(prefetch);
        content(&mounted, ".nar").iter().for_each(|nar| damage(nar));
        forget_pages(&mounted.at(&program));
        assert!(
            fs::read(mounted.at(&program)).expect("it reads") == right,
            "{cache}: wrong bytes"
        );
        assert!(
            mounted.counters()["damaged_reads"] > 0,
            "{cache}: nothing was damaged"
        );
        assert!(
            mounted.log().contains("the disk gave back other bytes"),
            "{}",
            mounted.log()
        );
        // What came again is kept: the next reader needs neither the cache nor luck.
        let damaged = mounted.counters()["damaged_reads"];
        forget_pages(&mounted.at(&program));
        assert!(fs::read(mounted.at(&program)).expect("it reads") == right);
        assert_eq!(mounted.counters()["damaged_reads"], damaged, "{cache}");
    }
}

#[test]
fn the_scrub_finds_what_nobody_reads() {
    let root = corpus::store_path("redis-server");
    let mounted = Mounted::start(setup("zstd").set("--scrub-rate=500MiB"));
    mounted.stop();
    // In the first pass there is something to look through.
    let prefetch = |mounted: &Mounted| {
        let mut prefetch = mounted.narfs();
        prefetch.args(["prefetch", "--quiet"]).arg(&root);
        run(prefetch);
    };
    prefetch(&mounted);
    let before = content(&mounted, ".nar");
    before.iter().for_each(|nar| damage(nar));
    mounted.start_again();
    wait_until("the damage is found", || {
        mounted.counters()["scrub_damages"] > 0
    });
    wait_until("it was fetched again", || {
        mounted.status(&root)["verified"] == true
    });
    let mut check = mounted.narfs();
    check.arg("check");
    run(check);
}

#[test]
fn a_program_runs_on_while_all_of_it_is_evicted() {
    let mounted = Mounted::start(setup("none").set("--quota=3MB"));
    let python = corpus::store_path("python3.11").join("bin/python3.11");
    let script = "\
import sys
for modules in ('json, csv, zlib', 'argparse, email.mime.text, decimal', 'asyncio, sqlite3, ssl', 'hashlib, urllib.request, unittest'):
    exec('import ' + modules)
    print(modules, flush=True)
    sys.stdin.readline()
print(json.dumps([str(decimal.Decimal(1) / 10), hashlib.sha256(b'narfs').hexdigest()[:8], asyncio.run(asyncio.sleep(0, 'done'))]))";
    let mut command = from_the_mount(&mounted, &python);
    command.args(["-E", "-s", "-B", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("unshare is installed");
    let mut input = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut freed = 0;
    for _ in 0..4 {
        lines.next().expect("a line").expect("UTF-8");
        let mut gc = mounted.narfs();
        gc.args(["gc", "--to", "0", "--json"]);
        let done: serde_json::Value = serde_json::from_str(&run(gc)).expect("JSON");
        freed += done["freed"].as_u64().expect("a number");
        input.write_all(b"\n").expect("it reads");
    }
    let last = lines.next().expect("a line").expect("UTF-8");
    assert_eq!(last, format!("[\"0.1\", \"{}\", \"done\"]", "0d74c15f"));
    assert!(child.wait().expect("it ends").success());
    assert!(freed > 3_000_000, "only {freed} bytes were evicted");
    // And within the quota as soon as nobody reads.
    wait_until("the quota is kept", || {
        let kept: u64 = content(&mounted, "")
            .iter()
            .map(|path| fs::metadata(path).map_or(0, |meta| meta.blocks() * 512))
            .sum();
        kept <= 3_000_000
    });
}

#[test]
fn a_path_that_is_named_first_on_a_full_disk_is_served_too() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let root = corpus::store_path("redis-server");
    let name = root
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let trees = truth::trees(&root);
    let full = Tmpfs::new(&place.path().join("state"), "8m");
    let mounted = Mounted::start(setup("zstd").state(&full.0));
    fill(&full.0);
    let served = || assert_same(&name, &snapshot(&mounted.at(&root)), &trees[&name]);
    let inode = || {
        fs::symlink_metadata(mounted.at(&root))
            .expect("it is there")
            .ino()
    };
    served();
    let first = inode();
    // The number that the kernel was told is the path's also for the next process, room or none.
    mounted.kill();
    mounted.start_again();
    assert_eq!(inode(), first);
    served();
    fs::remove_file(full.0.join("filler")).expect("removed");
    let mut prefetch = mounted.narfs();
    prefetch.args(["prefetch", "--quiet"]).arg(&root);
    run(prefetch);
    mounted.stop();
    mounted.start_again();
    assert_eq!(
        (inode(), mounted.status(&root)["verified"].as_bool()),
        (first, Some(true))
    );
    let spare = fs::read(full.0.join("narfs.spare")).expect("it is there");
    assert!(
        spare.iter().all(|byte| *byte == 0),
        "all slots are in the database"
    );
    served();
}

#[test]
fn destroyed_indexes_are_made_again() {
    let root = corpus::store_path("redis-server");
    let trees = truth::trees(&root);
    let mounted = Mounted::start(setup("zstd"));
    for (name, wanted) in &*trees {
        assert_same(name, &snapshot(&mounted.at(name)), wanted);
    }
    mounted.stop();
    for path in content(&mounted, "") {
        if !path.to_string_lossy().ends_with(".nar") {
            let size = fs::metadata(&path).expect("it is there").size();
            fs::write(&path, vec![0x5a; size as usize]).expect("written");
        }
    }
    fs::write(mounted.state_dir().join("narfs.redb"), vec![0x5a; 1 << 20]).expect("written");
    mounted.start_again();
    for (name, wanted) in &*trees {
        assert_same(name, &snapshot(&mounted.at(name)), wanted);
    }
}
