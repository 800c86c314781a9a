//! `narfs run`: a program from a binary cache, as an ordinary user, with nothing installed.

use std::ffi::OsString;

use super::{StoreFile, parse_store_file};

const LONG: &str = "\
Runs a program from a store path, fetching what it reads.

Makes a user and mount namespace of its own, with a lazy /nix/store in it, and runs the program \
there: neither privileges nor Nix nor a /nix on this machine are needed. Everything else of the \
machine is seen as it is. Programs that the program starts see the same store.

What was fetched stays in the state directory: the next run starts from it, and runs at the same \
time share one daemon, which goes away some time after the last of them.";

const AFTER: &str = "\
Exit status:
  The program's own (128 + N if signal N ended it). When narfs could not start it:
  2    the command line or the configuration is wrong
  3    no cache has the store path
  4    the store path has no trusted signature
  5    no cache can be reached or answered in time
  6    the kernel does not allow user namespaces or FUSE for this user
  126  the file cannot be executed
  127  there is no such file in the store path

Signals:
  Signals sent to narfs are passed on to the program.

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
