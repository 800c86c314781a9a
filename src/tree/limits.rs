//! What a tree may hold at most, and which names are legal. The same for listings, NARs and images.

/// Longest file name, in bytes: `NAME_MAX` of every Linux file system.
pub const MAX_NAME: usize = 255;

/// Longest symlink target, in bytes: `PATH_MAX` without its terminating NUL.
pub const MAX_TARGET: usize = 4095;

/// Deepest entry, in names from the root: a path of 4,096 bytes (`PATH_MAX`) has no room for more,
/// so that nothing deeper can be opened by its name. Nix 2.34 stops at 64, older ones nowhere.
pub const MAX_DEPTH: u32 = 2048;

/// Most entries in a tree, the root among them: inode numbers keep 24 bits for the entry.
pub const MAX_ENTRIES: u32 = (1 << 24) - 1;

/// Most bytes of names and targets: 64 for each of [`MAX_ENTRIES`]; the mean in nixpkgs is 17.
/// Bounds what a hostile archive makes narfs keep in memory, and fits the format's 32 bits.
pub const MAX_STRINGS: u32 = 1 << 30;

/// Why a tree cannot be shown, whoever describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A name that cannot be a file's.
    #[error("its name is empty, `.`, `..`, or contains `/` or NUL")]
    IllegalName,
    /// Longer than [`MAX_NAME`].
    #[error("its name has {0} bytes, more than the limit of {MAX_NAME}")]
    NameTooLong(u64),
    /// Two entries of one directory share a name.
    #[error("its name stands twice in its directory")]
    Duplicate,
    /// A target that no symlink can have.
    #[error("its target is empty or contains NUL")]
    IllegalTarget,
    /// Longer than [`MAX_TARGET`].
    #[error("its target has {0} bytes, more than the limit of {MAX_TARGET}")]
    TargetTooLong(u64),
    /// Deeper than [`MAX_DEPTH`].
    #[error("it is deeper than the limit of {MAX_DEPTH} directories")]
    TooDeep,
    /// More than [`MAX_ENTRIES`].
    #[error("there are more entries than the limit of {MAX_ENTRIES}")]
    TooManyEntries,
    /// More than [`MAX_STRINGS`].
    #[error("its names and targets together exceed the limit of {MAX_STRINGS} bytes")]
    TooManyStrings,
    /// Sizes that do not add up to a 64-bit number.
    #[error("the sizes add up to more than 2^64 - 1 bytes")]
    TooLarge,
}

/// Whether `name` can be a file's.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Refusal> {
    if name.len() > MAX_NAME {
        return Err(Refusal::NameTooLong(name.len() as u64));
    }
    let illegal = matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0));
    if illegal {
        Err(Refusal::IllegalName)
    } else {
        Ok(())
    }
}

/// Whether `target` can be a symlink's.
pub(crate) fn check_target(target: &[u8]) -> Result<(), Refusal> {
    if target.len() > MAX_TARGET {
        return Err(Refusal::TargetTooLong(target.len() as u64));
    }
    if target.is_empty() || target.contains(&0) {
        Err(Refusal::IllegalTarget)
    } else {
        Ok(())
    }
}
