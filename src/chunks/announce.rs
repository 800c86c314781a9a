//! How a narinfo says that its NAR has a chunk index.
//!
//! By one more signature, `NAME.chunks-1:…`, of the NAR's and the file's hashes and sizes. Every
//! reader of narinfos expects signatures of keys that it does not know, and passes over them; a
//! field that it does not know is an error for some (go-nix). A cache that the NAR is copied to
//! packs it anew: the signature comes along, but is not right any more, and nobody looks for an
//! index there.

use crate::nix::{NarInfo, Signature, SigningKey, TrustedKeys};

/// What stands behind a key's name.
const SUFFIX: &str = ".chunks-1";

/// Where a NAR's index is, relative to the cache.
pub fn file_name(url: &str) -> String {
    format!("{url}.chunks")
}

/// What is signed; nothing where the narinfo does not tell which file it means.
fn statement(info: &NarInfo) -> Option<Vec<u8>> {
    let (file_hash, file_size) = (info.file_hash?, info.file_size?);
    let (hash, size) = (info.nar_hash, info.nar_size);
    Some(format!("narfs-chunks-1;{hash};{size};{file_hash};{file_size}").into_bytes())
}

/// Says in a narinfo that there is an index.
pub fn announce(key: &SigningKey, info: &mut NarInfo) {
    let name = format!("{}{SUFFIX}", key.name());
    let signature = statement(info)
        .map(|text| key.sign_text(&text))
        .and_then(|signature| Signature::new(&name, *signature.bytes()));
    info.signatures.retain(|s| s.key() != name);
    info.signatures.extend(signature);
}

/// Whether a narinfo says so, in the name of one of these keys.
pub fn announced(info: &NarInfo, keys: &TrustedKeys) -> bool {
    let said = |s: &Signature| {
        let name = s.key().strip_suffix(SUFFIX)?;
        Some(keys.verify(&statement(info)?, &Signature::new(name, *s.bytes())?))
    };
    info.signatures.iter().any(|s| said(s) == Some(true))
}
