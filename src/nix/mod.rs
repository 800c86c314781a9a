//! What Nix's formats mean: store paths, hashes, narinfos, signatures, archives, settings.
//!
//! Pure: bytes in, typed values or typed errors out. No network, no clock. Two functions read
//! files, for the demonstration's own cache: [`nar::dump`] and [`SigningKey::generate`].

pub mod base32;
pub mod cache_info;
pub mod compression;
pub mod hash;
pub mod nar;
pub mod narinfo;
pub mod nix_conf;
pub mod store_path;
pub mod trust;

pub use cache_info::{CacheInfo, CacheInfoError};
pub use compression::Compression;
pub use hash::{HashError, NarHash, NarHasher};
pub use nar::RootKind;
pub use narinfo::{MAX_NARINFO, NarInfo, NarInfoError};
pub use store_path::{STORE_DIR, StorePath, StorePathError, StorePathHash};
pub use trust::{KeyError, Signature, SigningKey, Trust, TrustedKeys};
