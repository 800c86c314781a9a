//! Where decoding can start.

/// A place where decoding can start afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Checkpoint {
    /// Offset in the packed file.
    pub packed: u64,
    /// Offset in the NAR of the first byte that comes from there.
    pub nar: u64,
}

impl Checkpoint {
    /// The start of the file.
    pub const START: Self = Self { packed: 0, nar: 0 };
}
