//! Whole mounts while everything around them fails: caches, names of hosts, the state directory.
//! Somebody looks at the mount all the while and is always answered.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    corpus,
    gate::{nar_url, serve},
    lifecycle::in_namespace,
    mounted::{Mounted, Setup, run, shell, wait_until},
    prober::Prober,
    scripted::{Gate, Reply, Server},
    snapshot::{assert_same, entry, files, snapshot},
    truth,
};

/// A mount with short patience, so that what fails does so soon.
fn impatient(url: &str) -> Setup {
    Setup::new(url, corpus::public_key())
        .set("--tries=1")
        .set("--lookup-timeout=2s")
        .set("--read-timeout=3s")
        .set("--stall-timeout=1s")
        .set("--connect-timeout=1s")
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().expect("a name");
    name.to_string_lossy().into_owned()
}

/// EIO, and nothing that a program could take for "it is not there".
fn is_eio<T: std::fmt::Debug>(outcome: std::io::Result<T>) {
    let error = outcome.expect_err("it can't be had");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
}

/// Ten paths and files that nobody read yet.
fn unread(mounted: &Mounted, trees: &truth::Trees) -> Vec<PathBuf> {
    let all = trees.iter().flat_map(|(name, tree)| {
        let inside = files(tree).into_iter();
        inside.map(move |file| mounted.at(name).join(file))
    });
    let all: Vec<_> = all.collect();
    let step = all.len() / 10;
    all.into_iter().step_by(step.max(1)).collect()
}

/// What makes a cache fail.
type Begin = fn(&Server);

#[test]
fn the_mount_answers_through_every_fault() {
    let root = corpus::store_path("redis-server");
    let trees = truth::trees(&root);
    let first = name_of(&root);
    let faults: [(&str, Begin); 8] = [
        ("no answers", |s| s.everything(Some(Reply::hang()))),
        ("torn connections", |s| s.everything(Some(Reply::reset()))),
        ("503", |s| {
            let busy = Reply::status(503).header("Retry-After", "1");
            s.everything(Some(busy));
        }),
        ("a log-in page", |s| s.everything(Some(Reply::html()))),
        ("in a circle", |s| {
            s.everything(Some(Reply::redirect("/nix-cache-info")));
        }),
        ("a byte at a time", |s| {
            let slow = Reply::as_it_is().trickle(1, Duration::from_millis(50));
            s.everything(Some(slow));
        }),
        ("torn in the body", |s| {
            s.everything(Some(Reply::as_it_is().reset_after(10)));
        }),
        ("gone", Server::vanish),
    ];
    for (what, begin) in faults {
        println!("{what}");
        let server = serve("zstd");
        let mounted = Mounted::start(impatient(&server.base()));
        let known = mounted.at(&root);
        fs::symlink_metadata(&known).expect("it is there");
        wait_until("the closure is known", || {
            mounted.counters()["admitted"] == trees.len() as u64
        });
        let prober = Prober::start(&mounted.path(), &known);
        begin(&server);
        let unread = unread(&mounted, &trees);
        std::thread::scope(|scope| {
            let readers: Vec<_> = unread
                .iter()
                .map(|file| scope.spawn(move || fs::read(file)))
                .collect();
            let new = mounted.at(format!("{}-unknown", "1".repeat(32)));
            let found = fs::symlink_metadata(new);
            match what {
                // Only what the cache has is broken; that it has no such path it still says.
                "a byte at a time" | "torn in the body" => {
                    let error = found.expect_err("no cache has it");
                    assert_eq!(
                        error.kind(),
                        std::io::ErrorKind::NotFound,
                        "{what}: {error}"
                    );
                }
                _ => is_eio(found),
            }
            for reader in readers {
                // An empty file has nothing to be fetched.
                match reader.join().expect("no panic") {
                    Ok(bytes) => assert!(bytes.is_empty(), "{what}: {} bytes", bytes.len()),
                    error => is_eio(error),
                }
            }
        });
        server.everything(None);
        server.come_back();
        // The first read after it, and then everything.
        let tree = &trees[&first];
        let last = files(tree).pop().expect("a file");
        assert_eq!(tree.get(&last), Some(&entry(&known.join(&last))), "{what}");
        for (name, wanted) in &*trees {
            assert_same(name, &snapshot(&mounted.at(name)), wanted);
        }
        let (looks, longest) = prober.finish();
        println!("{what}: {looks} looks, the longest {longest:?}");
    }
}

/// The name of the cache's host can't be resolved, can, and can't again: `/etc/hosts` and
/// `/etc/resolv.conf` of the daemon's own.
#[test]
fn without_the_names_of_hosts_what_is_here_stays_and_the_rest_comes_when_they_are_back() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let trees = truth::trees(&root);
    let url = server.url_on("cache.narfs-test.invalid", "");
    let mounted = Mounted::prepare(impatient(&url));
    let etc = |name: &str| mounted.directory().join(name);
    let (hosts, resolv) = (etc("hosts"), etc("resolv.conf"));
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("written");
    // Nobody listens there, and says so at once.
    fs::write(
        &resolv,
        "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    )
    .expect("written");
    let script =
        "mount --bind \"$1\" /etc/hosts; mount --bind \"$2\" \"$(realpath /etc/resolv.conf)\"";
    run(in_namespace(
        script,
        &[&hosts, &resolv],
        &mounted.mount_command(),
    ));
    mounted.find();
    let at = |path: &Path| {
        let inside = mounted.at(path);
        let inside = inside.strip_prefix("/").expect("absolute");
        Path::new(&format!("/proc/{}/root", mounted.pid())).join(inside)
    };
    is_eio(fs::symlink_metadata(at(&root)));
    assert_eq!(
        server.requests().len(),
        0,
        "the test's name can be resolved"
    );
    fs::write(&hosts, "127.0.0.1 localhost cache.narfs-test.invalid\n").expect("written");
    // The first lookup after it.
    let tree = &trees[&name_of(&root)];
    let inside = files(tree);
    let (some, other) = (&inside[0], &inside[inside.len() - 1]);
    let read = entry(&at(&root).join(some));
    assert_eq!(tree.get(some), Some(&read));
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("written");
    server.vanish();
    assert_eq!(entry(&at(&root).join(some)), read, "it is here");
    is_eio(fs::symlink_metadata(at(Path::new(&format!(
        "{}-unknown",
        "1".repeat(32)
    )))));
    fs::write(&hosts, "127.0.0.1 localhost cache.narfs-test.invalid\n").expect("written");
    server.come_back();
    assert_eq!(tree.get(other), Some(&entry(&at(&root).join(other))));
}

/// The state directory can't be written to any more while it is in use.
#[test]
fn a_state_directory_that_becomes_read_only_serves_on() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let trees = truth::trees(&root);
    let mounted = Mounted::start(Setup::new(server.base(), corpus::public_key()));
    fs::symlink_metadata(mounted.at(&root)).expect("it is there");
    wait_until("the closure is known", || {
        mounted.counters()["admitted"] == trees.len() as u64
    });
    let kept = trees.keys().next().expect("a closure");
    assert_same(kept, &snapshot(&mounted.at(kept)), &trees[kept]);
    mounted.wait_until_idle();
    let state = mounted.state_dir();
    // In one step: a mount through which the daemon has opened a file in the meantime is busy.
    let script = "mkdir \"$1.ro\"; mount --bind \"$1\" \"$1.ro\"; mount -o remount,ro,bind \"$1.ro\"; \
        mount --bind \"$1.ro\" \"$1\"; umount \"$1.ro\"";
    run(shell(script, &[&state]));
    let over = ReadOnly(state.clone());
    assert!(fs::write(state.join("content/x"), "x").is_err());
    let prober = Prober::start(&mounted.path(), &mounted.at(kept));
    for (name, wanted) in &*trees {
        assert_same(name, &snapshot(&mounted.at(name)), wanted);
    }
    prober.finish();
    drop(over);
    // It can be written to again: what is read now is kept.
    for (name, wanted) in &*trees {
        for file in files(wanted) {
            let file = fs::File::open(mounted.at(name).join(file)).expect("it is there");
            let forget = rustix::fs::Advice::DontNeed;
            rustix::fs::fadvise(&file, 0, None, forget).expect("dropped from the page cache");
        }
        assert_same(name, &snapshot(&mounted.at(name)), wanted);
    }
    wait_until("it is kept", || {
        trees
            .keys()
            .all(|name| mounted.status(&Path::new("/nix/store").join(name))["state"] == "complete")
    });
}

/// A file system that was made read-only by a mount over it.
struct ReadOnly(PathBuf);

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&self.0, flags);
    }
}

/// The first bytes of a file.
fn head(file: &Path) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    let mut file = fs::File::open(file).expect("it is there");
    file.read_exact(&mut bytes).expect("it has them");
    bytes
}

/// More than the daemon has threads for blocking work.
const HANGING: usize = 140;

#[test]
fn a_hundred_and_forty_streams_that_hang_are_in_nobodys_way() {
    let server = serve("zstd");
    let setup = Setup::new(server.base(), corpus::public_key());
    let mounted = Mounted::start(setup.set("--stall-timeout=120s").set("--read-timeout=240s"));
    let (root, other) = (
        corpus::store_path("ffmpeg"),
        corpus::store_path("redis-server"),
    );
    let gate = Gate::new();
    let mut wanted = Vec::new();
    for path in corpus::closure(&root) {
        // Enough for the decoder to begin.
        let cut = Reply::as_it_is().pausing_at(600, &gate);
        server.on(&nar_url("zstd", &path), cut);
        let mut find = Command::new("find");
        find.arg(&path);
        find.args(["-type", "f", "-size", "+1k", "-print", "-quit"]);
        wanted.extend(run(find).lines().map(PathBuf::from));
    }
    wanted.truncate(HANGING);
    assert_eq!(
        wanted.len(),
        HANGING,
        "the closure of ffmpeg has more paths"
    );
    std::thread::scope(|scope| {
        let readers: Vec<_> = wanted
            .iter()
            .map(|real| {
                let inside = real.strip_prefix("/nix/store").expect("a store path");
                let at = mounted.at(inside);
                scope.spawn(move || head(&at))
            })
            .collect();
        gate.wait_for(HANGING);
        // What was never known, from its names to the end of its NAR; well before a stall is one.
        let begun = Instant::now();
        let name = name_of(&other);
        assert_same(&name, &snapshot(&mounted.at(&name)), &snapshot(&other));
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
        gate.open();
        for (reader, real) in readers.into_iter().zip(&wanted) {
            assert!(
                reader.join().expect("read") == head(real),
                "{}",
                real.display()
            );
        }
    });
}
