//! `narfs trace`: a run that is recorded, and a page that shows where its time went.
//!
//! ```text
//! host.rs      a daemon in this process; `narfs run` as its client; signals, the end
//! gather.rs    what was recorded ──▶ document.rs: names, sums     time.rs   where the time went
//! page/        the document ──▶ one HTML file
//! ```

mod document;
mod gather;
mod host;
mod page;
mod time;

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{Exit, Failure, StoreFile, output, parse_store_file};
use crate::config::{Config, Flags};

const LONG: &str = "\
Runs a program as `narfs run` does, records what happens, and writes it down as one page of HTML.

The page shows on one time line what the kernel asked for and how long it waited, every request to \
a cache with its lane, its first byte, its bytes and its outcome; for each file the bytes that were \
touched of those that were fetched; and where the time went: mounting, names, waiting for a first \
byte, for streams, for unpacking, and the program's own work. It needs no network and no other \
file; with --json the same comes as a document for programs.

The run starts with nothing: a state directory of its own, which is removed afterwards. With --warm, \
or with --state-dir on the command line, it is the configured one, which no daemon may be using.";

const AFTER: &str = "\
Exit status:
  The program's own, or 128 and the number of the signal that ended it; the page is written \
whatever it is. When it could not be started or the page not be written, as for `narfs run`.

Signals:
  An interrupt goes to the program, and the page is written when that has ended; a second one ends \
the program at once.

Examples:
  $ narfs trace /nix/store/HASH-python3-3.11.9/bin/python3 -c 'import json'
  $ narfs trace --output start.html --json start.json --cache https://cache.example.org \\
      --trusted-key example-1:BASE64 /nix/store/HASH-tool/bin/tool";

/// Arguments of `narfs trace`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Run a program and write down, as a page, what it waited for", long_about = LONG, after_long_help = AFTER)]
pub struct TraceArgs {
    /// The page [default: narfs-trace-PROGRAM.html in this directory]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// What was recorded, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Use what the state directory has: not a cold start
    #[arg(long)]
    pub warm: bool,

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

/// Runs and records it; the status to end with is the program's.
///
/// # Errors
/// Why the program can't be run, or the page not be written.
pub fn run(config: &Config, flags: &Flags, args: &TraceArgs) -> Result<ExitCode, Failure> {
    let page = args
        .output
        .clone()
        .unwrap_or_else(|| default_page(&args.program));
    // Before the program runs, perhaps for hours.
    for file in [Some(&page), args.json.as_ref()].into_iter().flatten() {
        touch(file)?;
    }
    let document = host::record(config, flags, args)?;
    if let Some(file) = &args.json {
        write(file, output::json(&document, false)?.as_bytes())?;
    }
    write(&page, page::render(&document).as_bytes())?;
    let shown = output::printable(&page.display().to_string());
    // Standard output is the program's.
    eprintln!("narfs: the trace is in {shown}");
    let status = match (document.ended.status, document.ended.signal) {
        (_, Some(signal)) => 128 + signal,
        (status, None) => status.unwrap_or(1),
    };
    Ok(u8::try_from(status).unwrap_or(1).into())
}

fn default_page(program: &StoreFile) -> PathBuf {
    let name = program.inside.rsplit('/').next().unwrap_or_default();
    let name = if name.is_empty() {
        program.store_path.name()
    } else {
        name
    };
    PathBuf::from(format!("narfs-trace-{name}.html"))
}

fn unwritable(file: &Path, error: &std::io::Error) -> Failure {
    let what = format!("{} can't be written", file.display());
    Failure::new(Exit::System, what)
        .because(error)
        .hint("name another file with --output or --json")
}

/// Sees that the file can be written; what is in it stays until there is something new.
fn touch(file: &Path) -> Result<(), Failure> {
    let opened = OpenOptions::new().create(true).append(true).open(file);
    opened.map(drop).map_err(|e| unwritable(file, &e))
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = std::fs::File::create(file).and_then(|mut file| file.write_all(bytes));
    written.map_err(|e| unwritable(file, &e))
}
