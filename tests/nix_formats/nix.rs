//! The real Nix, with a store of its own in a temporary directory.

use std::{
    ffi::OsStr,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory with a store, removed at the end.
pub struct Sandbox {
    dir: tempfile::TempDir,
    stores: AtomicU32,
}

impl Sandbox {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("home")).unwrap();
        Self {
            dir,
            stores: AtomicU32::new(0),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn store_url(&self) -> String {
        format!("local?root={}", self.path().join("store").display())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.path().join("home"))
            .env(
                "NIX_CONFIG",
                "experimental-features = nix-command\nbuild-users-group =\nsubstituters =",
            )
            .env("NIX_REMOTE", self.store_url());
        command
    }

    fn output(&self, program: &str, mut command: Command) -> Output {
        command.output().unwrap_or_else(|why| {
            panic!(
                "cannot run {program}: {why}. These tests compare narfs with the real Nix and are \
                 not skipped without it; install it (Debian: package nix-bin)"
            )
        })
    }

    fn checked(&self, program: &str, command: Command) -> Vec<u8> {
        let shown = format!("{command:?}");
        let output = self.output(program, command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{shown}: {}\n{errors}\n(root is needed)",
            output.status
        );
        output.stdout
    }

    /// What a command writes; it has to succeed.
    pub fn run(&self, program: &str, args: &[&OsStr]) -> Vec<u8> {
        let mut command = self.command(program);
        command.args(args);
        self.checked(program, command)
    }

    /// The line that a command writes.
    pub fn text(&self, program: &str, args: &[&str], path: Option<&Path>) -> String {
        let mut command = self.command(program);
        command.args(args).args(path);
        String::from_utf8(self.checked(program, command))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Adds to the store with a command that writes the store path.
    pub fn store(&self, program: &str, args: &[&str], path: &Path) -> String {
        self.text(program, args, Some(path))
    }

    /// Adds a tree to the store, addressed by its contents.
    pub fn add(&self, tree: &Path) -> String {
        self.store("nix-store", &["--add"], tree)
    }

    /// Puts a tree into the store under a name that says nothing about its contents, with
    /// references to `other` and to itself, as a build would.
    pub fn register(&self, name: &str, tree: &Path, other: &str) -> String {
        let path = format!("/nix/store/{name}");
        let inside = self.path().join("store").join(&path[1..]);
        let copied = Command::new("cp")
            .arg("-a")
            .arg(tree)
            .arg(&inside)
            .status()
            .unwrap();
        assert!(copied.success());
        let hash = self.text("nix-hash", &["--type", "sha256", "--base32"], Some(tree));
        let size = self
            .run("nix-store", &["--dump".as_ref(), tree.as_os_str()])
            .len();
        let mut command = self.command("nix-store");
        command
            .arg("--load-db")
            .stdin(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let record = format!("{path}\n{hash}\n{size}\n\n2\n{other}\n{path}\n");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(record.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
        path
    }

    /// Makes a key: the secret's file, and the public half.
    pub fn key(&self, name: &str) -> (PathBuf, String) {
        let (secret, public) = (self.path().join("secret"), self.path().join("public"));
        self.run(
            "nix-store",
            &[
                "--generate-binary-cache-key".as_ref(),
                name.as_ref(),
                secret.as_ref(),
                public.as_ref(),
            ],
        );
        let public = fs::read_to_string(public).unwrap().trim().to_owned();
        (secret, public)
    }

    /// Copies store paths into a binary cache with listings.
    pub fn copy_to(&self, cache: &Path, compression: &str, key: &Path, paths: &[&str]) {
        let url = format!(
            "file://{}?compression={compression}&write-nar-listing=1&secret-key={}",
            cache.display(),
            key.display()
        );
        let mut command = self.command("nix");
        let from = self.store_url();
        command
            .args(["copy", "--no-check-sigs", "--from", &from, "--to", &url])
            .args(paths);
        self.checked("nix", command);
    }

    /// Whether Nix takes a path from a cache into a new store, trusting this key alone.
    pub fn accepts(&self, cache: &Path, path: &str, public_key: &str) -> bool {
        let number = self.stores.fetch_add(1, Ordering::Relaxed);
        let store = self.path().join(format!("copy-{number}"));
        let mut command = self.command("nix");
        command.args(["copy", "--from", &format!("file://{}", cache.display())]);
        command.args(["--to", &format!("local?root={}", store.display())]);
        command.args(["--option", "trusted-public-keys", public_key]);
        command.args(["--option", "require-sigs", "true"]);
        // Nix remembers what a cache said; the test changes that.
        command.args(["--option", "narinfo-cache-positive-ttl", "0"]);
        command.arg(path);
        let output = self.output("nix", command);
        output.status.success() && store.join(&path[1..]).symlink_metadata().is_ok()
    }
}
