//! Where in a NAR a file's bytes stand: a pure function of names, sizes, executable bits and links.
//!
//! Source of the format: `dump` in Nix's `libutil/archive.cc`. Every token is its length as a
//! 64-bit number, its bytes, and zeros up to a multiple of 8. Regular files always carry
//! `contents`, also empty ones.

use super::{
    limits::Refusal,
    walk::{Place, Step, Walk},
};

/// What every NAR begins with.
pub(super) const NAR_MAGIC: &[u8] = b"nix-archive-1";

/// Bytes of a token of `len` bytes, for constants.
const fn token(len: usize) -> u64 {
    8 + len.next_multiple_of(8) as u64
}

/// As [`token`], for a length from outside; `None` on overflow.
fn long_token(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(8)?.checked_add(8)
}

/// `(` `type`
const OPEN: u64 = token(1) + token(4);
/// `)`
const CLOSE: u64 = token(1);
/// `regular` … `contents` and the length of what follows
const REGULAR: u64 = token(7) + token(8) + 8;
/// `executable` and an empty token
const EXECUTABLE: u64 = token(10) + token(0);
/// `symlink` `target`
const SYMLINK: u64 = token(7) + token(6);
/// `directory`
const DIRECTORY: u64 = token(9);
/// `entry` `(` `name` … `node`, without the name
const ENTRY: u64 = token(5) + token(1) + token(4) + token(4);

/// What the layout depends on.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    Directory,
    Regular { executable: bool, size: u64 },
    Symlink { target_len: u64 },
}

/// The tree whose NAR is laid out; numbered as [`Walk`] demands.
pub(super) trait Laid {
    fn place(&self, entry: u32) -> Place;
    fn shape(&self, entry: u32) -> Shape;
    fn name_len(&self, entry: u32) -> u64;
}

/// Calls `found` with each file and the place of its bytes; gives the size of the whole NAR.
/// The error names the entry that goes too far.
pub(super) fn layout(
    tree: &impl Laid,
    mut found: impl FnMut(u32, u64),
) -> Result<u64, (u32, Refusal)> {
    let mut at = token(NAR_MAGIC.len());
    for step in Walk::new(|entry| tree.place(entry)) {
        let end = match step {
            Step::Enter(entry, _) => enter(tree, entry, at, &mut found).ok_or(entry),
            Step::Leave(entry) => leave(entry, at).ok_or(entry),
        };
        at = end.map_err(|entry| (entry, Refusal::TooLarge))?;
    }
    Ok(at)
}

/// Where the walk stands after an entry's beginning, or after all of it if it is no directory.
fn enter(tree: &impl Laid, entry: u32, at: u64, found: &mut impl FnMut(u32, u64)) -> Option<u64> {
    let at = match entry {
        0 => at,
        _ => at
            .checked_add(ENTRY)?
            .checked_add(long_token(tree.name_len(entry))?)?,
    };
    let at = at.checked_add(OPEN)?;
    match tree.shape(entry) {
        Shape::Directory => at.checked_add(DIRECTORY),
        Shape::Regular { executable, size } => {
            let executable = if executable { EXECUTABLE } else { 0 };
            let bytes = at.checked_add(REGULAR)?.checked_add(executable)?;
            found(entry, bytes);
            leave(entry, bytes.checked_add(size.checked_next_multiple_of(8)?)?)
        }
        Shape::Symlink { target_len } => leave(
            entry,
            at.checked_add(SYMLINK)?
                .checked_add(long_token(target_len)?)?,
        ),
    }
}

/// Where the walk stands after an entry's closing parentheses: its node's, and its own in the
/// directory that holds it.
fn leave(entry: u32, at: u64) -> Option<u64> {
    at.checked_add(if entry == 0 { CLOSE } else { 2 * CLOSE })
}
