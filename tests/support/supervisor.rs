//! A service manager as far as a mount helper sees one: the socket of `NOTIFY_SOCKET`, the store
//! that keeps descriptors over a restart, and handing them over with `LISTEN_FDS`.
//!
//! As systemd does it: what is said is read by another thread, so that nobody waits to say it; what
//! is stored under one name is kept in order, the newest first; a stored descriptor that reports an
//! error or a hang-up is dropped.
#![allow(dead_code)]

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

#[derive(Default)]
struct Heard {
    /// Every message, in order.
    messages: Vec<String>,
    stored: Vec<(String, OwnedFd)>,
}

/// See the module.
pub struct Supervisor {
    address: PathBuf,
    heard: Arc<Mutex<Heard>>,
    /// `WATCHDOG_USEC`, if it is to be set.
    pub watchdog: Option<Duration>,
}

impl Supervisor {
    pub fn new(directory: &Path) -> Self {
        let address = directory.join("notify.sock");
        let socket = UnixDatagram::bind(&address).expect("a socket");
        let heard = Arc::<Mutex<Heard>>::default();
        let listening = heard.clone();
        std::thread::spawn(move || while let Some(()) = hear(&socket, &listening) {});
        Self {
            address,
            heard,
            watchdog: None,
        }
    }

    /// Starts a service, with what is stored.
    pub fn start(&self, command: &Command) -> Child {
        let mut heard = self.heard.lock().unwrap();
        heard
            .stored
            .retain(|(_, descriptor)| !has_ended(descriptor));
        let (mut redirections, mut names, mut handed) = (String::new(), Vec::new(), Vec::new());
        for (n, (name, descriptor)) in heard.stored.iter().enumerate() {
            // Away from the numbers that they are to get.
            let copy = fcntl_dupfd_cloexec(descriptor, 50).expect("a descriptor");
            fcntl_setfd(&copy, FdFlags::empty()).expect("inheritable");
            redirections += &format!(" {}<&{1} {1}<&-", n + 3, copy.as_raw_fd());
            names.push(name.clone());
            handed.push(copy);
        }
        let script = format!("export LISTEN_PID=$$; exec \"$@\"{redirections}");
        let mut service = Command::new("/bin/bash");
        service.args(["-euc", &script, "service"]);
        service.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => service.env(name, value),
                None => service.env_remove(name),
            };
        }
        service.env("NOTIFY_SOCKET", &self.address);
        if let Some(time) = self.watchdog {
            service.env("WATCHDOG_USEC", time.as_micros().to_string());
        }
        if !names.is_empty() {
            service.env("LISTEN_FDS", names.len().to_string());
            service.env("LISTEN_FDNAMES", names.join(":"));
        }
        heard.messages.clear();
        drop(heard);
        service.spawn().expect("bash is there")
    }

    /// Waits until a line was said since the last start.
    pub fn wait_for(&self, line: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.count(line) == 0 {
            assert!(Instant::now() < deadline, "nobody says {line}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How often a line was said since the last start.
    pub fn count(&self, line: &str) -> usize {
        let heard = self.heard.lock().unwrap();
        let lines = heard.messages.iter().flat_map(|message| message.lines());
        lines.filter(|said| *said == line).count()
    }

    /// Names of what is stored.
    pub fn stored(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard.stored.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Lets go of everything, as when a service is stopped.
    pub fn drop_all(&self) {
        self.heard.lock().unwrap().stored.clear();
    }
}

fn hear(socket: &UnixDatagram, heard: &Mutex<Heard>) -> Option<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; 64 << 10];
    let mut parts = [IoSliceMut::new(&mut text)];
    let got = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let message = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let descriptors: Vec<OwnedFd> = descriptors.collect();
    let name = message
        .lines()
        .find_map(|line| line.strip_prefix("FDNAME="));
    let mut heard = heard.lock().unwrap();
    if message.lines().any(|line| line == "FDSTORE=1") {
        for descriptor in descriptors {
            let name = name.unwrap_or("stored").to_owned();
            heard.stored.insert(0, (name, descriptor));
        }
    }
    if message.lines().any(|line| line == "FDSTOREREMOVE=1") {
        heard.stored.retain(|(stored, _)| Some(&**stored) != name);
    }
    heard.messages.push(message);
    Some(())
}

fn has_ended(descriptor: &OwnedFd) -> bool {
    let mut state = [PollFd::new(descriptor, PollFlags::empty())];
    poll(&mut state, Some(&Timespec::default())).is_ok()
        && state[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP)
}
