//! A far network: `benches/slowlink.py`.

use std::{
    cell::RefCell,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{mounted::wait_until, registry::free_port};

/// A round trip of 20 ms and 200 Mbit/s in front of a port: `benches/slowlink.py`.
pub struct Link {
    port: u16,
    target: u16,
    process: RefCell<Child>,
}

impl Link {
    /// In front of `http://127.0.0.1:PORT`.
    pub fn start(url: &str) -> Self {
        let target = url.rsplit(':').next().and_then(|port| port.parse().ok());
        let target = target.expect("a URL with a port");
        let port = free_port();
        let process = RefCell::new(Self::spawn(port, target));
        Self {
            port,
            target,
            process,
        }
    }

    fn spawn(port: u16, target: u16) -> Child {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/slowlink.py");
        let process = Command::new("/usr/bin/python3")
            .arg(script)
            .args([port.to_string(), target.to_string()])
            .args(["--rtt", "20", "--mbit", "200"])
            .stdin(Stdio::null())
            .spawn()
            .expect("python3 is installed by tests/setup");
        wait_until("the link is there", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        process
    }

    /// What is behind it, as seen through it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The far side is gone: connections are refused.
    pub fn cut(&self) {
        let mut process = self.process.borrow_mut();
        // Fails where it has ended already, which is what is wanted.
        let _ = process.kill();
        let _ = process.wait();
    }

    /// The far side is back.
    pub fn mend(&self) {
        let mut process = self.process.borrow_mut();
        *process = Self::spawn(self.port, self.target);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}
