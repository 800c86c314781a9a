//! `narfs bugreport`: one archive with what somebody needs who was not there.
//!
//! ```text
//! gather.rs  what goes in: text by name (reads the system, never the mount)
//! mask.rs    secrets taken out of it (pure)
//! ```

mod gather;
mod mask;

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    Exit, Failure,
    output::{self, human},
};
use crate::config::Config;
use gather::Piece;

const LONG: &str = "\
Puts into one archive what somebody needs who was not there: the effective configuration, versions, \
facts of the kernel and of its mounts, the end of the log, metrics, status, what waits for what, the \
last errors, and the names and sizes of what the state directory holds.

It works whether or not a daemon runs, never touches the mount, and waits for nothing longer than ten \
seconds. Passwords and tokens are masked wherever they stand; netrc, token and key files are not included. \
The names of store paths, caches and programs are in it: look at it before you give it away.";

const AFTER: &str = "\
Exit status:
  0  written
  2  the command line or the configuration is wrong
  6  the file can't be written

Examples:
  # narfs bugreport
  # narfs bugreport -o - | zstd -d | tar -t
  $ tar --zstd -xf narfs-bugreport.tar.zst";

/// Arguments of `narfs bugreport`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Write one archive for a bug report, without secrets", long_about = LONG, after_long_help = AFTER)]
pub struct BugreportArgs {
    /// The file to write, which must not exist yet; - is standard output
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "narfs-bugreport.tar.zst"
    )]
    pub output: PathBuf,
}

/// The directory that everything in the archive is in.
const ROOT: &str = "narfs-bugreport";
/// Of zstd: text shrinks well at any.
const LEVEL: i32 = 9;

/// Writes it.
///
/// # Errors
/// When the file can't be written. What can't be had is said in the archive.
pub fn run(config: &Config, args: &BugreportArgs) -> Result<(), Failure> {
    let secrets = mask::Secrets::of(config);
    let mut pieces = gather::all(config);
    for piece in &mut pieces {
        piece.text = secrets.mask(&piece.text);
    }
    pieces.sort_by(|a, b| a.name.cmp(b.name));
    let failed = |e: std::io::Error| {
        let what = format!("{} can't be written", args.output.display());
        Failure::new(Exit::System, what).because(&e)
    };
    let archive = pack(&pieces).map_err(failed)?;
    if args.output == Path::new("-") {
        std::io::stdout().write_all(&archive).map_err(failed)?;
        return Ok(());
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.output)
        .map_err(failed)?;
    file.write_all(&archive).map_err(failed)?;
    output::write(contents(&args.output, &archive, &pieces).as_bytes()).map(drop)
}

/// What was written.
fn contents(path: &Path, archive: &[u8], pieces: &[Piece]) -> String {
    let mut text = format!(
        "{}  {}\n",
        path.display(),
        human::bytes(archive.len() as u64)
    );
    for piece in pieces {
        let size = human::bytes(piece.text.len() as u64);
        text += &format!("  {:20} {size:>10}  {}\n", piece.name, piece.what);
    }
    text + "Passwords and tokens are masked. Names of store paths, caches and programs are in it: \
            look before you give it away.\n"
}

/// The same pieces make the same archive.
fn pack(pieces: &[Piece]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), LEVEL)?);
    for piece in pieces {
        let mut header = tar::Header::new_ustar();
        header.set_size(piece.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        let path = format!("{ROOT}/{}", piece.name);
        archive.append_data(&mut header, path, piece.text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_pieces_make_the_same_archive() {
        let pieces = || {
            vec![Piece {
                name: "a.txt",
                what: "a text",
                text: "text\n".into(),
            }]
        };
        let archive = pack(&pieces()).unwrap();
        assert_eq!(archive, pack(&pieces()).unwrap());
        let unpacked = zstd::decode_all(&archive[..]).unwrap();
        let mut archive = tar::Archive::new(&unpacked[..]);
        let mut entries = archive.entries().unwrap();
        let entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap(), Path::new("narfs-bugreport/a.txt"));
        assert!(entries.next().is_none());
    }
}
