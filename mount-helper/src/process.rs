//! What needs `unsafe`: fork, signals as a descriptor, descriptors by number, and what a child does
//! before it becomes another program.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, set_parent_process_death_signal, setsid},
    thread::{
        CapabilitySet, capabilities, clear_ambient_capability_set, set_capabilities,
        set_no_new_privs,
    },
};

/// More than there are: 41 in Linux 6.18, in a set of 64.
const MAX_CAPABILITY: libc::c_ulong = 63;

/// Takes over a descriptor that was left open for this process under this number.
///
/// # Errors
/// `EBADF` if it was not.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the number is only duplicated through it, which fails for one that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let own = borrowed.try_clone_to_owned()?;
    // SAFETY: the number was given to this process for this one purpose; closed here, it reaches
    // its end of file when `own` is dropped.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(own)
}

/// Goes on in a child; `None` is the child, `Some` the parent with the child's number.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so the child is a whole copy of it and may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Undoes for a child what [`Signals`] does.
fn unblock() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set that `sigprocmask` uses.
    let done = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The daemon gets a session of its own, so that no terminal takes it along; it and what it starts
/// have no capabilities, whoever they run as, and never gain privileges. With `ids`, user and group,
/// it is somebody else, without further groups. With `dies_with_us` it is told to end when this
/// process is killed.
pub(crate) fn confine(command: &mut Command, dies_with_us: bool, ids: Option<(u32, u32)>) {
    let prepare = move || {
        unblock()?;
        setsid()?;
        give_up_capabilities()?;
        if let Some((user, group)) = ids {
            become_user(user, group)?;
        }
        set_no_new_privs(true)?;
        if dies_with_us {
            set_parent_process_death_signal(Some(Signal::TERM))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called; these are
    // bare system calls, and nothing is allocated.
    unsafe { command.pre_exec(prepare) };
}

/// Takes all capabilities from the program that is run next: root gets those of the bounding set and
/// the inheritable ones, anybody the ambient ones.
fn give_up_capabilities() -> io::Result<()> {
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: numbers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match dropped {
            0 => {}
            // Past the last one; or this process may not, as in a container without `SETPCAP`, and
            // the daemon keeps what a container leaves to root.
            _ => break,
        }
    }
    // Kernels before 4.3 have none.
    let _ = clear_ambient_capability_set();
    let mut own = capabilities(None)?;
    own.inheritable = CapabilitySet::empty();
    set_capabilities(None, own)?;
    Ok(())
}

fn become_user(user: u32, group: u32) -> io::Result<()> {
    // SAFETY: numbers, and an empty list.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(group, group, group) == 0
            && libc::setresuid(user, user, user) == 0
    };
    match done {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

/// The signals that end this process, as a descriptor to be read. They are blocked meanwhile, for
/// its children too, where nobody undoes it.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    pub fn new() -> io::Result<Self> {
        let mut wanted = std::mem::MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set that the others use; all get valid pointers.
        // With one thread, `sigprocmask` concerns the whole process. The descriptor is new.
        unsafe {
            libc::sigemptyset(wanted.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(wanted.as_mut_ptr(), signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, wanted.as_ptr(), std::ptr::null_mut()) == -1 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, wanted.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                number => Ok(Self(OwnedFd::from_raw_fd(number))),
            }
        }
    }

    pub fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Takes one signal, if one came.
    pub fn take(&self) -> bool {
        let mut information = [0; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.0, &mut information).is_ok()
    }
}

/// Leaves a descriptor open for the next program, which is told its number.
pub(crate) fn leave_open(descriptor: &OwnedFd) -> io::Result<RawFd> {
    rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
    Ok(descriptor.as_raw_fd())
}
