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

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0z9wcv93z7bc9zqh1f5wwplw6rq7k925";
    const NAR: &str = "sha256:04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w";

    fn asked() -> StorePathHash {
        StorePathHash::parse(HASH.as_bytes()).unwrap()
    }

    fn parse(text: &str) -> Result<NarInfo, NarInfoError> {
        NarInfo::parse(text.as_bytes(), &asked())
    }

    /// The least that a cache may write, with more lines behind.
    fn minimal(more: &str) -> String {
        format!(
            "StorePath: /nix/store/{HASH}-hello\nURL: nar/x.nar\nNarHash: {NAR}\nNarSize: 120\n{more}"
        )
    }

    #[test]
    fn reads_what_nix_writes_and_writes_it_again() {
        let text = format!(
            "StorePath: /nix/store/{HASH}-hello\nURL: nar/x.nar.zst\nCompression: zstd\n\
             FileHash: {NAR}\nFileSize: 77\nNarHash: {NAR}\nNarSize: 120\n\
             References: 0z9wcv93z7bc9zqh1f5wwplw6rq7k925-hello 88y1nnsv6qjp9i138bqlpqsg259b0n96-x\n\
             Deriver: 88y1nnsv6qjp9i138bqlpqsg259b0n96-hello.drv\n\
             Sig: k-1:{}\nCA: fixed:r:{NAR}\n",
            "A".repeat(86) + "=="
        );
        let info = parse(&text).unwrap();
        assert_eq!(
            (info.file_size, info.nar_size, info.references.len()),
            (Some(77), 120, 2)
        );
        assert_eq!(info.signatures[0].key(), "k-1");
        assert_eq!(info.to_text(), text);
    }

    #[test]
    fn fills_in_what_may_be_absent() {
        let info = parse(&minimal("")).unwrap();
        assert_eq!(info.compression, Compression::Bzip2);
        assert_eq!(
            (info.file_hash, info.file_size, info.deriver.clone()),
            (None, None, None)
        );
        assert!(info.references.is_empty() && info.signatures.is_empty() && info.ca.is_none());
        assert_eq!(
            parse(&minimal("Compression: \n")).unwrap().compression,
            Compression::Bzip2
        );
        assert_eq!(parse(&minimal("References: \n")).unwrap().references, []);
    }

    #[test]
    fn overlooks_what_does_not_decide_anything() {
        let more = "Deriver: unknown-deriver\nSig: k-1:broken\nSig: without-colon\nSig: k:AAAA\n\
            FileHash: md5:xyz\nCA: future:x\nFuture: a: b\nX-Other:\n\n";
        let info = parse(&minimal(more)).unwrap();
        assert_eq!((info.deriver.clone(), info.file_hash), (None, None));
        assert!(info.signatures.is_empty());
        assert_eq!(info.ca.as_deref(), Some("future:x"));
        assert!(parse(&minimal("Deriver:\n")).unwrap().deriver.is_none());
        assert!(parse(&minimal("").replace('\n', "\r\n")).is_ok());
    }

    #[test]
    fn takes_urls_as_they_are() {
        for url in [
            "nar/x.nar.xz?hash=abc&y=%20",
            "https://cdn.example.org/x?a:b",
            "/nar/x",
            "../x",
        ] {
            let text = minimal("").replace("nar/x.nar", url);
            assert_eq!(parse(&text).unwrap().url, url);
        }
        assert_eq!(
            parse(&minimal("").replace("nar/x.nar", "")),
            Err(NarInfoError::Missing("URL"))
        );
    }

    #[test]
    fn sorts_references_and_takes_absolute_ones() {
        let more = "References: /nix/store/88y1nnsv6qjp9i138bqlpqsg259b0n96-x \
            0z9wcv93z7bc9zqh1f5wwplw6rq7k925-hello 88y1nnsv6qjp9i138bqlpqsg259b0n96-x\n";
        let info = parse(&minimal(more)).unwrap();
        let names: Vec<&str> = info.references.iter().map(StorePath::name).collect();
        assert_eq!(names, ["hello", "x"]);
        assert_eq!(
            info.fingerprint(),
            format!(
                "1;/nix/store/{HASH}-hello;{NAR};120;/nix/store/{HASH}-hello,\
                 /nix/store/88y1nnsv6qjp9i138bqlpqsg259b0n96-x"
            )
        );
    }

    #[test]
    fn references_are_signed_in_the_order_of_their_text() {
        // Digests sort by their digits, of which the first is the last byte's: not as bytes do.
        let (a, b) = (
            "0000000000000000000000000000000z-a",
            "z0000000000000000000000000000000-b",
        );
        let info = parse(&minimal(&format!("References: {b} {a}\n"))).unwrap();
        assert!(
            info.fingerprint()
                .ends_with(&format!(";/nix/store/{a},/nix/store/{b}"))
        );
    }

    #[test]
    fn refuses_what_is_none_or_another_path_s() {
        let html = "<!DOCTYPE html>\n<html><head><title>Not here: sorry</title>";
        assert!(matches!(
            parse(html),
            Err(NarInfoError::NotNarInfo { line: 1, .. })
        ));
        assert!(matches!(
            parse("{\"error\": 404}"),
            Err(NarInfoError::NotNarInfo { .. })
        ));
        assert_eq!(parse(""), Err(NarInfoError::Missing("StorePath")));
        assert!(matches!(
            NarInfo::parse(b"StorePath: \xff", &asked()),
            Err(NarInfoError::NotNarInfo { .. })
        ));
        let big = minimal(&"x: y\n".repeat(MAX_NARINFO / 5));
        assert!(matches!(parse(&big), Err(NarInfoError::TooLarge(_))));
        let other = StorePathHash::from_bytes([1; 20]);
        let error = NarInfo::parse(minimal("").as_bytes(), &other);
        assert!(matches!(error, Err(NarInfoError::OtherPath { asked, .. }) if asked == other));
        let elsewhere = minimal("").replace("/nix/store", "/gnu/store");
        assert!(matches!(parse(&elsewhere), Err(NarInfoError::StoreDir(_))));
        for path in [
            format!("{HASH}-hello"),
            format!("/nix/store/{HASH}-hello/bin"),
        ] {
            let text = minimal("").replace(&format!("/nix/store/{HASH}-hello"), &path);
            assert!(
                matches!(parse(&text), Err(NarInfoError::StoreDir(_))),
                "{path}"
            );
        }
    }

    #[test]
    fn refuses_what_decides_and_is_wrong() {
        for field in ["StorePath", "URL", "NarHash", "NarSize"] {
            let without: String = minimal("")
                .lines()
                .filter(|l| !l.starts_with(field))
                .map(|l| format!("{l}\n"))
                .collect();
            assert_eq!(parse(&without), Err(NarInfoError::Missing(field)));
        }
        for field in [
            "StorePath",
            "URL",
            "NarHash",
            "NarSize",
            "References",
            "CA",
            "Compression",
        ] {
            let twice = minimal(&format!("{field}: a\n{field}: b\n"));
            let error = parse(&twice).unwrap_err();
            assert_eq!(error, NarInfoError::Duplicate(field), "{field}");
        }
        for size in ["0", "-1", "+1", "1.5", "", "18446744073709551616", "1 2"] {
            let text = minimal("").replace("120", size);
            assert!(
                matches!(
                    parse(&text),
                    Err(NarInfoError::Size {
                        field: "NarSize",
                        ..
                    })
                ),
                "{size}"
            );
        }
        assert!(matches!(
            parse(&minimal("FileSize: x\n")),
            Err(NarInfoError::Size { .. })
        ));
        let sha1 = minimal("").replace(NAR, "sha1:6xvw2ppgs144lqmc65kv3xqqfzjk37gd");
        assert!(matches!(parse(&sha1), Err(NarInfoError::Hash(_))));
        for bad in [
            "../x",
            "x",
            "0z9wcv93z7bc9zqh1f5wwplw6rq7k925-a/b",
            "/etc/passwd",
        ] {
            let text = minimal(&format!("References: {bad}\n"));
            assert!(
                matches!(
                    parse(&text),
                    Err(NarInfoError::Path {
                        field: "References",
                        ..
                    })
                ),
                "{bad}"
            );
        }
        let lzma = parse(&minimal("Compression: lzma\n"));
        assert_eq!(lzma, Err(NarInfoError::Compression("lzma".into())));
    }
}
