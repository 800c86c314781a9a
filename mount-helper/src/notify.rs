//! systemd: readiness, watchdog, and the store that keeps descriptors while nobody runs
//! (`sd_notify(3)`, `sd_listen_fds(3)`). Without systemd nothing of it happens.

use std::{
    env,
    io::{self, IoSlice},
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::Command,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{device::Kept, process::adopt, warn};

/// Names of the descriptors in the store.
const DEVICE: &str = "narfs-device";
const GREETING: &str = "narfs-greeting";
/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
/// What no child may take for its own.
const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// The service manager, if there is one.
pub(crate) struct Manager {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that all is well.
    pub watchdog: Option<Duration>,
}

impl Manager {
    pub fn of_process() -> Self {
        let socket = env::var("NOTIFY_SOCKET").ok().and_then(|address| {
            let connected = connect(&address);
            if let Err(error) = &connected {
                warn(format_args!("the service manager can't be told: {error}"));
            }
            connected.ok()
        });
        let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| for_us && socket.is_some());
        Self {
            socket,
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// As if there were none.
    pub fn nobody() -> Self {
        Self {
            socket: None,
            watchdog: None,
        }
    }

    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends assignments, one a line. That it can't be told is no reason to do anything else.
    pub fn tell(&self, what: &str) {
        if let Some(Err(error)) = self.socket.as_ref().map(|s| s.send(what.as_bytes())) {
            warn(format_args!("the service manager can't be told: {error}"));
        }
    }

    /// Puts a mount into the store. It drops the device by itself when the mount ends.
    pub fn store(&self, kept: &Kept) {
        for (name, descriptor) in [(DEVICE, &kept.device), (GREETING, &kept.greeting)] {
            let Some(socket) = &self.socket else { return };
            let text = format!("FDSTORE=1\nFDNAME={name}");
            let descriptors = [descriptor.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
            let text = [IoSlice::new(text.as_bytes())];
            match sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) if fits => {}
                failed => warn(format_args!("{name} is not stored: {failed:?}")),
            }
        }
    }

    /// The mount has ended: nothing of it is to come back.
    pub fn forget(&self) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={DEVICE}"));
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={GREETING}"));
    }
}

fn connect(address: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    Ok(socket)
}

/// The mount that an earlier process of this service left in the store, if it did.
pub(crate) fn received() -> io::Result<Option<Kept>> {
    let variable = |name| env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != std::process::id().to_string() {
        return Ok(None);
    }
    let names = variable("LISTEN_FDNAMES");
    let count = variable("LISTEN_FDS").parse().unwrap_or(0);
    let (mut devices, mut greetings) = (Vec::new(), Vec::new());
    for (number, name) in (FIRST..).zip(names.split(':')).take(count) {
        match name {
            DEVICE => devices.push(adopt(number)?),
            GREETING => greetings.push(adopt(number)?),
            _ => warn(format_args!("a descriptor {name} is of no use here")),
        }
    }
    let pair = devices.pop().zip(greetings.pop());
    Ok(pair.map(|(device, greeting)| Kept { device, greeting }))
}

/// A child is no service.
pub(crate) fn hide_from(command: &mut Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
}
