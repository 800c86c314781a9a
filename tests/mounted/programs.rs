//! Real programs run from a mount over `/nix/store`, most of whose closure was never fetched.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    corpus,
    mounted::{Mounted, Setup, read_json, run, wait_until},
    truth,
};

/// A program in a mount namespace of its own, in which `/nix/store` is this mount.
pub fn from_the_mount(mounted: &Mounted, program: &Path) -> Command {
    let script = "mount --make-rprivate /; mount --bind \"$1\" /nix/store; \
                  test -e /nix/store/.nix-snapshotter/summary.json; shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "/bin/bash", "-euc", script, "bash"]);
    command.arg(mounted.path()).arg(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", mounted.directory());
    command
}

fn mount(cache: &str) -> Mounted {
    let url = format!("file://{}", corpus::cache(cache).display());
    Mounted::start(Setup::new(url, corpus::public_key()))
}

/// Bytes fetched of bytes known.
fn fetched(mounted: &Mounted) -> (u64, u64) {
    let summary = mounted.summary();
    let number = |name: &str| summary[name].as_u64().expect("a number");
    (number("fetchedSize"), number("size"))
}

#[test]
fn python_imports_its_library() {
    let mounted = mount("none");
    let python = corpus::store_path("python3.11").join("bin/python3.11");
    let script = "\
import argparse, asyncio, collections, csv, decimal, email.mime.text, hashlib, json, sqlite3, ssl, urllib.request, zlib
import sys
assert json.__file__.startswith('/nix/store/'), json.__file__
db = sqlite3.connect(':memory:')
db.execute('create table t (n)')
db.executemany('insert into t values (?)', [(n,) for n in range(10)])
print(json.dumps({'sum': db.execute('select sum(n) from t').fetchone()[0],
                  'sha256': hashlib.sha256(b'narfs').hexdigest()[:8],
                  'crc': zlib.crc32(b'narfs'),
                  'tenth': str(decimal.Decimal(1) / 10),
                  'tls': ssl.OPENSSL_VERSION.split()[0],
                  'async': asyncio.run(asyncio.sleep(0, 'done')),
                  'executable': sys.executable}))";
    let mut command = from_the_mount(&mounted, &python);
    command.args(["-E", "-s", "-B", "-c", script]);
    let found: serde_json::Value = serde_json::from_str(&run(command)).expect("JSON");
    let wanted = serde_json::json!({
        "sum": 45, "sha256": sha256_of_narfs(), "crc": 0xce64fece_u32, "tenth": "0.1",
        "tls": "OpenSSL", "async": "done", "executable": python,
    });
    assert_eq!(found, wanted);
    let (fetched, size) = fetched(&mounted);
    assert!(fetched > 0 && fetched < size, "{fetched} of {size}");
}

#[test]
fn libraries_of_a_programs_modules_are_fetched_unasked() {
    let mounted = mount("zstd");
    let root = corpus::store_path("python3.11");
    let mut command = from_the_mount(&mounted, &root.join("bin/python3.11"));
    command.args(["-I", "-c", "pass"]);
    run(command);
    let closure = truth::closure(&root);
    let status = |name: &str| {
        let of_this_name = |path: &&String| path.contains(name);
        let path = closure.iter().find(of_this_name).expect("in the closure");
        mounted.status_file(Path::new(path))
    };
    // The modules that name these were not imported.
    for name in ["-openssl-", "-sqlite3-"] {
        wait_until(name, || {
            status(name).exists() && read_json(&status(name))["verified"] == true
        });
    }
    mounted.wait_until_idle();
    // No module names this one, only a library that one names.
    assert_eq!(read_json(&status("-krb5-"))["fetchedSize"], 0);
}

fn sha256_of_narfs() -> String {
    use sha2::Digest;
    let digest: [u8; 32] = sha2::Sha256::digest(b"narfs").into();
    digest[..4].iter().map(|b| format!("{b:02x}")).collect()
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which is fine here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn redis_answers() {
    let mounted = mount("zstd");
    let program = corpus::store_path("redis-server").join("bin/redis-server");
    let socket = mounted.directory().join("redis.sock");
    let mut command = from_the_mount(&mounted, &program);
    command
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket);
    command.current_dir(mounted.directory());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut server = Server(child.expect("unshare is installed"));
    let mut stream = None;
    wait_until("redis listens", || {
        let ended = server.0.try_wait().expect("it is ours");
        assert!(ended.is_none(), "redis ended: {ended:?}");
        stream = UnixStream::connect(&socket).ok();
        stream.is_some()
    });
    let stream = stream.expect("it connected");
    let mut answers = BufReader::new(&stream).lines();
    let mut ask = |words: &str| {
        (&stream).write_all(words.as_bytes()).expect("sent");
        (&stream).write_all(b"\r\n").expect("sent");
        answers.next().expect("an answer").expect("UTF-8")
    };
    assert_eq!(ask("PING"), "+PONG");
    assert_eq!(ask("SET key narfs"), "+OK");
    assert_eq!(ask("GET key"), "$5");
    assert_eq!(answers.next().expect("the value").expect("UTF-8"), "narfs");
}

/// The path of a root that only `tests/setup --all` builds; none where that did not run, unless
/// `NARFS_TEST_ALL` says that it has to.
fn large_root(name: &str) -> Option<PathBuf> {
    let paths =
        fs::read_to_string(corpus::directory().join("paths.json")).expect("run tests/setup");
    let wanted =
        std::env::var_os("NARFS_TEST_ALL").is_some() || paths.contains(&format!("\"{name}\""));
    if !wanted {
        eprintln!("not tried: the corpus has no {name} (tests/setup --all)");
    }
    wanted.then(|| corpus::store_path(name))
}

#[test]
fn ffmpeg_says_its_version() {
    let Some(root) = large_root("ffmpeg") else {
        return;
    };
    let mounted = mount("zstd");
    let mut command = from_the_mount(&mounted, &root.join("bin/ffmpeg"));
    command.arg("-version");
    let text = run(command);
    assert!(text.starts_with("ffmpeg version 5.1"), "{text}");
    assert!(text.contains("libavcodec     59."), "{text}");
}

#[test]
fn gcc_compiles() {
    let Some(root) = large_root("gcc-12") else {
        return;
    };
    let mounted = mount("zstd");
    let (source, object) = (
        mounted.directory().join("x.c"),
        mounted.directory().join("x.o"),
    );
    fs::write(&source, "int main(void) { return 42; }\n").expect("written");
    let mut command = from_the_mount(&mounted, &root.join("bin/gcc-12"));
    command.args([OsStr::new("-O2"), OsStr::new("-c"), source.as_os_str()]);
    command.arg("-o").arg(&object);
    run(command);
    let program = mounted.directory().join("x");
    let mut link = Command::new("cc");
    link.arg(&object).arg("-o").arg(&program);
    run(link);
    let status = Command::new(&program).status().expect("it runs");
    assert_eq!(status.code(), Some(42));
}

#[test]
fn imagemagick_converts() {
    let Some(root) = large_root("imagemagick") else {
        return;
    };
    let mounted = mount("zstd");
    let (from, to) = (
        mounted.directory().join("a.ppm"),
        mounted.directory().join("b.pgm"),
    );
    fs::write(&from, "P3 2 1 255\n255 255 255 0 0 0\n").expect("written");
    let mut command = from_the_mount(&mounted, &root.join("bin/convert-im6.q16"));
    // Debian compiled /usr in; what nixpkgs builds finds its own by itself.
    let modules = "lib/x86_64-linux-gnu/ImageMagick-6.9.11/modules-Q16/coders";
    command.env("MAGICK_CODER_MODULE_PATH", root.join(modules));
    command.env("MAGICK_CONFIGURE_PATH", root.join("etc/ImageMagick-6"));
    command.arg(&from).arg("-flop").arg(&to);
    run(command);
    let image = fs::read(&to).expect("it wrote");
    assert!(image.starts_with(b"P5"), "{image:?}");
    assert!(image.ends_with(&[0, 255]), "{image:?}");
}
