//! Any bytes as a `netrc` file: no panic, and every question has the same answer twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::substituter::netrc::Netrc;

fuzz_target!(|data: &[u8]| {
    let netrc = Netrc::parse(data);
    assert_eq!(netrc, Netrc::parse(data));
    let hosts = String::from_utf8_lossy(data);
    for host in hosts.split_whitespace().chain(["", "host", "[::1]"]) {
        let first = netrc.machine(host, None);
        if let Some(login) = first {
            assert_eq!(netrc.machine(host, Some(&login.user)), first);
            assert_eq!(netrc.machine_or_default(host, None), first);
        }
    }
    // What is said about a file says nothing of what is in it.
    let _ = format!("{netrc:?}");
});
