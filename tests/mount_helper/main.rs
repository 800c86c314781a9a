//! The mount helper: called as mount(8) calls its helpers and by hand, under daemons that are
//! killed, stopped, replaced and broken, and under a service manager. Needs root.
//!
//! No reader may see an error, a wrong byte or another inode number because of what happens to a
//! daemon, but where it is said so: while none can be started at all, and when the mount is ended.

#[path = "../support/admin.rs"]
mod admin;
mod calls;
mod confined;
mod ends;
mod faults;
#[path = "../support/hangs.rs"]
mod hangs;
mod kills;
mod listings;
#[path = "../support/mounted.rs"]
mod mounted;
mod privilege;
mod service;
#[path = "../support/supervisor.rs"]
mod supervisor;
#[path = "../support/mod.rs"]
mod support;
mod world;

use hangs::abort_when_it_hangs;
