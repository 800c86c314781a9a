//! `narfs top`, on a terminal of its own and without one.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use serde_json::Value;

use crate::{
    corpus,
    gate::{mount, serve},
    mounted::{Mounted, PATIENCE, output, wait_until},
};

/// The program on a terminal, and what it wrote so far.
struct OnTerminal {
    child: Child,
    keyboard: File,
    /// Our end of the terminal's other side: its modes are those of the terminal.
    side: OwnedFd,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl OnTerminal {
    fn start(mut command: Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).expect("ours");
        unlockpt(&ours).expect("open");
        let name = ptsname(&ours, Vec::new()).expect("a name");
        let side = || {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
            rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).expect("its other side")
        };
        let size = Winsize {
            ws_row: 30,
            ws_col: 110,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&ours, size).expect("a size");
        command.env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
        command
            .stdin(Stdio::from(side()))
            .stdout(Stdio::from(side()))
            .stderr(Stdio::from(side()));
        let child = command.spawn().expect("it starts");
        let keyboard = File::from(ours);
        let mut screen = keyboard.try_clone().expect("a copy");
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(size @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..size].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            side: side(),
            screen: receiver,
            seen: String::new(),
        }
    }

    /// Waits until this was written.
    fn see(&mut self, text: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            if let Ok(more) = self.screen.recv_timeout(Duration::from_millis(100)) {
                self.seen.push_str(&String::from_utf8_lossy(&more));
            }
            assert!(
                std::time::Instant::now() < deadline,
                "no {text:?} in {:?}",
                self.seen
            );
        }
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.side).expect("modes").local_modes;
        !modes.contains(LocalModes::ICANON)
    }

    /// Waits for the end, which has to leave the terminal as it was.
    fn ends(mut self) {
        let mut status = None;
        wait_until("it ends", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        assert!(status.is_some_and(|s| s.success()), "{status:?}");
        // Off the second screen, with the cursor.
        self.see("\u{1b}[?1049l");
        self.see("\u{1b}[?25h");
        assert!(!self.is_raw());
    }
}

fn top(mounted: &Mounted) -> Command {
    let mut command = mounted.narfs();
    command.args(["top", "--interval=300ms"]);
    command
}

#[test]
fn it_draws_takes_keys_and_leaves_the_terminal_clean() {
    let server = serve("none");
    let mounted = mount(&server);
    let root = corpus::store_path("redis-server");
    std::fs::read(mounted.at(&root).join("bin/redis-server")).expect("readable");

    let mut screen = OnTerminal::start(top(&mounted));
    screen.see("\u{1b}[?1049h");
    screen.see("LAST ERRORS");
    screen.see("online");
    assert!(screen.is_raw());
    screen.keyboard.write_all(b"\t+p").expect("keys");
    screen.see("paused");
    let small = Winsize {
        ws_row: 8,
        ws_col: 40,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&screen.keyboard, small).expect("a size");
    screen.keyboard.write_all(b"q").expect("a key");
    screen.ends();

    let mut screen = OnTerminal::start(top(&mounted));
    screen.see("LAST ERRORS");
    let pid = Pid::from_child(&screen.child);
    kill_process(pid, Signal::INT).expect("it runs");
    screen.ends();

    // Without colours where nobody wants any.
    let mut plain = top(&mounted);
    plain.env("NO_COLOR", "1");
    let mut screen = OnTerminal::start(plain);
    screen.see("online");
    assert!(!screen.seen.contains("\u{1b}[32m") && !screen.seen.contains("\u{1b}[38;5;"));
    screen.keyboard.write_all(b"\x03").expect("a key");
    screen.ends();
}

#[test]
fn without_a_terminal_it_prints() {
    let server = serve("none");
    let mounted = mount(&server);
    let root = corpus::store_path("redis-server");
    std::fs::read(mounted.at(&root).join("bin/redis-server")).expect("readable");
    let text = mounted.narfs_output(&["top", "--once", "--interval=250ms"]);
    assert!(
        text.contains("were here") && text.contains("online"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    let json = mounted.narfs_output(&["top", "--json"]);
    let said: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(said["inflight"]["caches"][0]["online"], true);
    assert!(said["summary"]["paths"]["total"].as_u64() > Some(0));
    assert!(
        said["metrics"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    let mut dumb = mounted.narfs();
    dumb.arg("top");
    assert_eq!(output(dumb).status.code(), Some(2));
    mounted.stop();
    let mut gone = mounted.narfs();
    gone.args(["top", "--once"]);
    let refused = output(gone);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no daemon answers"));
}
