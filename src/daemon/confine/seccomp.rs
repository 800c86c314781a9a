//! A seccomp filter: system calls that this process never makes, and that only somebody else in its
//! place would, fail with `EPERM`.
#![allow(unsafe_code)]

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter,
    sock_fprog,
};

/// Mounting, other processes, the kernel's own code, keys and namespaces.
const FORBIDDEN: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_io_uring_setup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_acct,
    libc::SYS_quotactl,
];

/// `AUDIT_ARCH_*` of the kernel's `linux/audit.h`: for other architectures the numbers mean other calls.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// From this number on, x86_64 has the calls of its 32-bit variant (`__X32_SYSCALL_BIT`), which no
/// program here uses; aarch64 has none so high.
const OTHER_NUMBERS: u32 = 0x4000_0000;

/// Where `struct seccomp_data` has the number of the call, and the architecture.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Puts the filter in force, for this thread and those that it starts from now on.
///
/// # Errors
/// Without `no_new_privs`, and where the kernel has no seccomp filters.
pub(super) fn enforce() -> io::Result<()> {
    let mut filter = filter();
    let program = sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives until the call returns and has that length.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn filter() -> Vec<sock_filter> {
    let load = |at| step(BPF_LD | BPF_W | BPF_ABS, 0, 0, at);
    let give = |answer| step(BPF_RET | BPF_K, 0, 0, answer);
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut steps = vec![
        load(ARCH),
        step(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCHITECTURE),
        give(refuse),
        load(NUMBER),
        step(BPF_JMP | BPF_JGE | BPF_K, 0, 1, OTHER_NUMBERS),
        give(refuse),
    ];
    for number in FORBIDDEN {
        steps.push(step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, *number as u32));
        steps.push(give(refuse));
    }
    steps.push(give(libc::SECCOMP_RET_ALLOW));
    steps
}

fn step(code: u32, if_so: u8, if_not: u8, value: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: if_so,
        jf: if_not,
        k: value,
    }
}
