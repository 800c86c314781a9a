//! `narfs run`: a program from a binary cache, as an ordinary user, with nothing installed.

use std::{ffi::OsString, os::fd::AsFd};

use super::{Failure, StoreFile, parse_store_file};
use crate::{
    config::{Config, Flags},
    daemon::{
        namespace,
        protocol::Request,
        reach::{reach, request},
    },
    fuse,
    nix::STORE_DIR,
};

const LONG: &str = "\
Runs a program from a store path, fetching what it reads.

Makes a user and mount namespace of its own, with a lazy /nix/store in it, and runs the program \
there: neither privileges nor Nix nor a /nix on this machine are needed. Everything else of the \
machine is seen as it is. Programs that the program starts see the same store. The user stays who \
he is; other users' files, those of the store among them, seem to belong to nobody.

What was fetched stays in the state directory: the next run starts from it, and runs at the same \
time share one daemon, which goes away some time after the last of them.";

const AFTER: &str = "\
Exit status:
  The program's own. When narfs could not start it:
  2    the command line or the configuration is wrong
  3    no cache has the store path
  4    the store path has no trusted signature
  5    no cache can be reached or answered in time, or the daemon that runs has other settings
  6    the kernel does not allow user namespaces or FUSE for this user
  126  the file cannot be executed
  127  there is no such file in the store path

Signals:
  The program takes the place of narfs, in the same process: signals and the terminal are its own.

Examples:
  $ narfs run /nix/store/HASH-python3-3.11.9/bin/python3 -c 'print(1 + 1)'
  $ narfs run --cache https://cache.example.org --trusted-key example-1:BASE64 \\
      /nix/store/HASH-tool/bin/tool --flag-of-the-tool";

/// Arguments of `narfs run`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Run a program from a binary cache, as an ordinary user", long_about = LONG, after_long_help = AFTER)]
pub struct RunArgs {
    /// The program: /nix/store/HASH-NAME/bin/PROGRAM, with or without /nix/store/ in front
    #[arg(value_name = "STOREPATH/bin/PROGRAM", value_parser = parse_store_file)]
    pub program: StoreFile,

    /// Its arguments, flags included: everything behind the program is passed on
    #[arg(
        value_name = "ARGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub args: Vec<OsString>,
}

/// Becomes the program; returns only if that is not possible.
///
/// # Errors
/// Why the program can't be run.
pub fn run(config: &Config, flags: &Flags, args: &RunArgs) -> Result<(), Failure> {
    reach(config, flags)?;
    let path = args.program.store_path.to_string();
    // Here, where there is a message to be had; in the mount it would be a mere "not found".
    request(config, Request::Admit { path }, None)?;
    namespace::enter()?;
    // Any directory of ours will do: what is mounted on it, nobody else sees, and it is gone from
    // there before the program starts.
    namespace::provide_store_dir(&config.state_dir.join("tmp"))?;
    let device = namespace::mount_fuse(STORE_DIR.as_ref())?;
    request(config, Request::Attach, Some(device.as_fd()))?;
    fuse::raise_read_ahead(STORE_DIR.as_ref());
    Err(namespace::become_program(
        args.program.absolute().as_ref(),
        &args.args,
    ))
}
