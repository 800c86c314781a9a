//! `narfs cat`: a file of a store path, straight from the caches.

use super::{Exit, Failure, StoreFile, in_store, output, parse_store_file};
use crate::{
    config::Config,
    daemon::{scratch::with_scratch_store, store_failure},
    store::Store,
    tree::Node,
};

/// Bytes that are read and written at a time: nothing larger is ever held in memory.
const PIECE: u32 = 1 << 20;

const LONG: &str = "\
Writes files of store paths to standard output, one behind the other. Needs no mount and no \
daemon; fetches no more than it needs: the file's own bytes from a cache that serves them \
uncompressed, otherwise the archive up to the end of the file.

Symbolic links are followed, also into other store paths. What arrives is kept in a temporary \
directory (below TMPDIR) until the end, never in the state directory.";

const AFTER: &str = "\
Exit status:
  0  written whole
  1  standard output cannot be written
  2  the command line or the configuration is wrong
  3  no cache has the store path, there is no such file in it, or it is a directory
  4  the store path has no trusted signature, or what came does not have the hash that was signed
  5  no cache can be reached or answered in time
  130  interrupted

Examples:
  $ narfs cat /nix/store/HASH-python3-3.11.9/lib/python3.11/this.py";

/// Arguments of `narfs cat`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Write files of store paths to standard output, straight from the caches", long_about = LONG, after_long_help = AFTER)]
pub struct CatArgs {
    /// The files
    #[arg(value_name = "STOREPATH/FILE", required = true, value_parser = parse_store_file)]
    pub files: Vec<StoreFile>,
}

/// Writes the files.
///
/// # Errors
/// When a file can't be found or fetched; the files in front of it were written then.
pub fn run(config: &Config, args: &CatArgs) -> Result<(), Failure> {
    with_scratch_store(config, async |store| {
        for file in &args.files {
            if !write_file(store, file).await? {
                // Nobody reads the output any more.
                break;
            }
        }
        Ok(())
    })
}

/// Whether somebody still reads the output.
async fn write_file(store: &Store, file: &StoreFile) -> Result<bool, Failure> {
    let place = in_store::find(store, file, true).await?;
    let size = match place.node() {
        Some(Node::Regular { size, .. }) => size,
        _ => {
            let what = format!("{} is a directory", place.absolute());
            return Err(Failure::new(Exit::NotFound, what).hint("`narfs ls` shows what is in it"));
        }
    };
    let mut offset = 0;
    while offset < size {
        let piece = store
            .read_file(&place.path, place.entry, offset, PIECE)
            .await;
        let piece = piece.map_err(|e| store_failure(&e))?;
        if piece.is_empty() {
            let what = format!("{} ends at byte {offset} of {size}", place.absolute());
            return Err(Failure::new(Exit::Failure, what));
        }
        offset += piece.len() as u64;
        // A reader that is slow or stopped must not keep signals from being noticed.
        let written = tokio::task::spawn_blocking(move || output::write(&piece)).await;
        let gone = |_| {
            Err(Failure::new(
                Exit::Failure,
                "standard output cannot be written",
            ))
        };
        if !written.unwrap_or_else(gone)? {
            return Ok(false);
        }
    }
    Ok(true)
}
