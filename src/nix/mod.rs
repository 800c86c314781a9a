//! What Nix's formats mean: store paths, hashes, narinfos, signatures, listings, archives.
//!
//! Pure: bytes in, typed values or typed errors out. No I/O, no network, no clock.

pub mod base32;
pub mod compression;
pub mod hash;
pub mod store_path;

pub use compression::Compression;
pub use hash::{HashError, NarHash, NarHasher};
pub use store_path::{StorePath, StorePathError, StorePathHash};
