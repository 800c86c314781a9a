//! A registry of images on a free loopback port, over plain HTTP, empty at first.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::mounted::{run, wait_until};

/// The server; it ends with the value.
pub struct Registry {
    port: u16,
    process: Child,
    directory: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let configuration = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            directory.path().join("images").display()
        );
        let file = directory.path().join("config.yml");
        fs::write(&file, configuration).expect("written");
        let log = fs::File::create(directory.path().join("log")).expect("a log");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let process = process.unwrap_or_else(|error| {
            panic!("docker-registry can't be run: {error}; tests/setup installs it")
        });
        let registry = Self {
            port,
            process,
            directory,
        };
        wait_until("the registry answers", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        registry
    }

    /// `127.0.0.1:PORT/NAME`
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Takes an image of an OCI archive in; what it is called now.
    pub fn push(&self, archive: &Path, name: &str) -> String {
        let reference = self.reference(name);
        let mut command = Command::new("skopeo");
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]);
        command.arg(format!("oci-archive:{}", archive.display()));
        command.arg(format!("docker://{reference}"));
        run(command);
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
