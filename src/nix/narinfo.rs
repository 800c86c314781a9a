//! Narinfos: what a cache says about a store path.
//!
//! Format: lines `Name: value` (`NarInfo::NarInfo` in Nix's `libstore/nar-info.cc`). Read here and
//! not by the `nix-narinfo` crate because caches write what that refuses, such as a content
//! address of an unknown kind or an empty deriver, and neither decides whether the path can be
//! used. Whom to believe is decided in [`super::trust`].

use std::fmt::Write as _;

use super::{
    Compression, HashError, NarHash, STORE_DIR, Signature, StorePath, StorePathError, StorePathHash,
};

/// Longest narinfo that is read, in bytes. The largest in public caches hold a few thousand
/// references of at most 244 bytes; this is what the `nix-narinfo` crate accepts as well.
pub const MAX_NARINFO: usize = 1 << 20;

/// Longest value quoted in an error, in bytes: an error page is not repeated in the log.
const QUOTED: usize = 80;

/// What a cache says about one store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path that it describes.
    pub store_path: StorePath,
    /// Where the NAR is: relative to the cache, absolute, with or without a query.
    pub url: String,
    /// How the NAR is packed there.
    pub compression: Compression,
    /// SHA-256 of the packed file, where the cache gives one.
    pub file_hash: Option<NarHash>,
    /// Bytes of the packed file, where the cache gives them.
    pub file_size: Option<u64>,
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// Bytes of the NAR; never 0.
    pub nar_size: u64,
    /// The paths that it refers to, sorted, each once; may contain the path itself.
    pub references: Vec<StorePath>,
    /// The derivation that built it, where that is known.
    pub deriver: Option<StorePath>,
    /// The signatures that can be read, in the cache's order.
    pub signatures: Vec<Signature>,
    /// The content address, as written.
    pub ca: Option<String>,
}

/// Why a text is no usable narinfo of the path that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// More than [`MAX_NARINFO`] bytes.
    #[error("a narinfo of {0} bytes is over the limit of {MAX_NARINFO}")]
    TooLarge(usize),
    /// Not lines of `Name: value` at all, such as an HTML page that came with status 200.
    #[error("not a narinfo: line {line} is {text:?}; does the URL lead to a Nix binary cache?")]
    NotNarInfo {
        /// The first line that has not the form, from 1.
        line: usize,
        /// How it begins.
        text: String,
    },
    /// A field that no path can be served without.
    #[error("the narinfo has no field {0}")]
    Missing(&'static str),
    /// A field that says two things.
    #[error("the narinfo has the field {0} more than once")]
    Duplicate(&'static str),
    /// A path outside `/nix/store`: the cache serves another store.
    #[error("the narinfo is for {0:?}, but this store is {STORE_DIR}; use a cache of that store")]
    StoreDir(String),
    /// The narinfo of something else.
    #[error("asked for {asked}, but the narinfo is for {got}")]
    OtherPath {
        /// What was asked for.
        asked: StorePathHash,
        /// What the narinfo describes.
        got: StorePath,
    },
    /// A store path that is none.
    #[error("the narinfo's {field}: {source}")]
    Path {
        /// The field it stands in.
        field: &'static str,
        /// What is wrong with it.
        source: StorePathError,
    },
    /// `NarHash` that is no SHA-256.
    #[error("the narinfo's NarHash: {0}")]
    Hash(#[from] HashError),
    /// A size that is no number of bytes, or a NAR of none.
    #[error("the narinfo's {field} is {value:?}, which is no possible number of bytes")]
    Size {
        /// The field it stands in.
        field: &'static str,
        /// As written.
        value: String,
    },
    /// A compression that narfs cannot unpack.
    #[error("the NAR is packed with {0:?}, which narfs cannot read")]
    Compression(String),
}

impl NarInfo {
    /// Reads the narinfo that a cache sent for `asked_for`.
    ///
    /// # Errors
    ///
    /// What decides where the NAR is, how long it is, what its hash is and what it refers to has
    /// to be there and right. The rest (file hash, deriver, a signature) is left out if it cannot
    /// be read, since Nix does not depend on it either.
    pub fn parse(text: &[u8], asked_for: &StorePathHash) -> Result<Self, NarInfoError> {
        let fields = Fields::split(text)?;
        let absolute = fields.required("StorePath")?;
        let store_path = match StorePath::parse_with_rest(absolute) {
            Err(StorePathError::NotInStore(path)) => return Err(NarInfoError::StoreDir(path)),
            Ok((path, "")) if absolute.starts_with('/') => path,
            Ok(_) => return Err(NarInfoError::StoreDir(quoted(absolute.as_bytes()))),
            Err(source) => {
                return Err(NarInfoError::Path {
                    field: "StorePath",
                    source,
                });
            }
        };
        if store_path.hash() != *asked_for {
            return Err(NarInfoError::OtherPath {
                asked: *asked_for,
                got: store_path,
            });
        }
        let compression = match fields.optional("Compression")? {
            None | Some("") => Compression::Bzip2,
            Some(name) => Compression::parse(name)
                .ok_or_else(|| NarInfoError::Compression(quoted(name.as_bytes())))?,
        };
        let url = match fields.required("URL")? {
            "" => return Err(NarInfoError::Missing("URL")),
            url => url.to_owned(),
        };
        let nar_size = match size("NarSize", fields.required("NarSize")?)? {
            0 => {
                return Err(NarInfoError::Size {
                    field: "NarSize",
                    value: "0".into(),
                });
            }
            bytes => bytes,
        };
        let mut references = fields
            .optional("References")?
            .unwrap_or_default()
            .split_ascii_whitespace()
            .map(|base| {
                reference(base).map_err(|source| NarInfoError::Path {
                    field: "References",
                    source,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        references.sort();
        references.dedup();
        Ok(Self {
            url,
            compression,
            file_hash: fields
                .optional("FileHash")?
                .and_then(|t| NarHash::parse(t).ok()),
            file_size: fields
                .optional("FileSize")?
                .map(|t| size("FileSize", t))
                .transpose()?,
            nar_hash: NarHash::parse(fields.required("NarHash")?)?,
            nar_size,
            references,
            deriver: fields.optional("Deriver")?.and_then(|t| reference(t).ok()),
            signatures: fields.all("Sig").filter_map(Signature::parse).collect(),
            ca: fields
                .optional("CA")?
                .filter(|ca| !ca.is_empty())
                .map(str::to_owned),
            store_path,
        })
    }

    /// What a cache's key signs: `1;<path>;<hash>;<size>;<references>`, with absolute paths.
    ///
    /// Source: `ValidPathInfo::fingerprint` in Nix's `libstore/path-info.cc`.
    pub fn fingerprint(&self) -> String {
        let references: Vec<String> = self.references.iter().map(StorePath::absolute).collect();
        format!(
            "1;{};{};{};{}",
            self.store_path.absolute(),
            self.nar_hash,
            self.nar_size,
            references.join(",")
        )
    }

    /// The narinfo as Nix writes it, which [`NarInfo::parse`] reads back equal.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "StorePath: {}\nURL: {}\nCompression: {}\n",
            self.store_path.absolute(),
            self.url,
            self.compression
        );
        let mut field = |name: &str, value: &dyn std::fmt::Display| {
            // Writing into a `String` has no way to fail.
            let _ = writeln!(text, "{name}: {value}");
        };
        if let Some(hash) = &self.file_hash {
            field("FileHash", hash);
        }
        if let Some(size) = &self.file_size {
            field("FileSize", size);
        }
        field("NarHash", &self.nar_hash);
        field("NarSize", &self.nar_size);
        let references: Vec<String> = self.references.iter().map(StorePath::to_string).collect();
        field("References", &references.join(" "));
        if let Some(deriver) = &self.deriver {
            field("Deriver", deriver);
        }
        for signature in &self.signatures {
            field("Sig", signature);
        }
        if let Some(ca) = &self.ca {
            field("CA", ca);
        }
        text
    }
}

/// The lines of a narinfo.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn split(text: &'a [u8]) -> Result<Self, NarInfoError> {
        if text.len() > MAX_NARINFO {
            return Err(NarInfoError::TooLarge(text.len()));
        }
        let mut fields = Vec::new();
        for (number, line) in text.split(|b| *b == b'\n').enumerate() {
            let not = || NarInfoError::NotNarInfo {
                line: number + 1,
                text: quoted(line),
            };
            let line = std::str::from_utf8(line).map_err(|_| not())?.trim_end();
            if line.is_empty() {
                continue;
            }
            let (name, value) = line.split_once(':').ok_or_else(not)?;
            if !name
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            {
                return Err(not());
            }
            fields.push((name, value.trim_start()));
        }
        Ok(Self(fields))
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a str> + '_ {
        self.0.iter().filter(move |f| f.0 == name).map(|f| f.1)
    }

    fn optional(&self, name: &'static str) -> Result<Option<&'a str>, NarInfoError> {
        let mut all = self.all(name);
        match (all.next(), all.next()) {
            (_, Some(_)) => Err(NarInfoError::Duplicate(name)),
            (value, None) => Ok(value),
        }
    }

    fn required(&self, name: &'static str) -> Result<&'a str, NarInfoError> {
        self.optional(name)?.ok_or(NarInfoError::Missing(name))
    }
}

/// A reference or deriver: a base name as Nix writes it, or an absolute path as some caches do.
fn reference(text: &str) -> Result<StorePath, StorePathError> {
    match StorePath::parse_with_rest(text)? {
        (path, "") => Ok(path),
        _ => Err(StorePathError::Name(quoted(text.as_bytes()))),
    }
}

fn size(field: &'static str, text: &str) -> Result<u64, NarInfoError> {
    // `u64::from_str` would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| NarInfoError::Size {
            field,
            value: quoted(text.as_bytes()),
        })
}

/// The beginning of foreign text, for an error message.
fn quoted(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(QUOTED)]).into_owned()
}
