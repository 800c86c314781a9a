//! Access profiles: what the start of a program read of its closure, in the order in which it did.
//!
//! A profile is a hint. Whoever has one fetches what it names before anybody asks; a wrong one costs
//! bytes on the link, and never gives a wrong byte: what comes is checked as ever. So it needs no
//! signature, and is read as what it is, somebody else's text: bounded, and refused as a whole when
//! anything in it is not as it should be. The format is in `docs/profiles.md`.
//!
//! Pure.

use std::{collections::HashMap, ops::Range};

use serde::{Deserialize, Serialize};

use crate::nix::{StorePath, StorePathHash};

/// The version of the format.
pub const VERSION: u32 = 1;
/// Most bytes of a profile's text.
pub const MAX_PROFILE: u64 = 4 << 20;
/// Most ranges in a profile.
pub const MAX_RANGES: usize = 64 << 10;
/// NARs are smaller than this, in bytes.
const MAX_NAR: u64 = 1 << 48;

/// The name of the profile of a store path beside its narinfo.
pub fn file_name(path: &StorePathHash) -> String {
    format!("{path}.profile")
}

/// What a start read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The store path of the program.
    pub root: StorePath,
    /// What was read, in order.
    pub reads: Vec<Read>,
}

/// Parts of one store path that were read one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The store path.
    pub path: StorePath,
    /// Ranges of its NAR, in bytes.
    pub ranges: Vec<Range<u64>>,
}

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is too long.
    #[error("a profile has at most {MAX_PROFILE} bytes")]
    TooLong,
    /// It is no JSON, or other JSON.
    #[error("no profile")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error("version {0} of the format of profiles, where {VERSION} is known")]
    Version(u32),
    /// A name in it is none.
    #[error("{name:?} is no base name of a store path")]
    Name {
        /// The name.
        name: String,
    },
    /// A range in it is none.
    #[error("{start} to {end} is no range of a NAR")]
    Range {
        /// Where it begins.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// There are too many.
    #[error("a profile has at most {MAX_RANGES} ranges")]
    TooMany,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    root: String,
    reads: Vec<Part>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    path: String,
    nar: Vec<[u64; 2]>,
}

#[derive(Deserialize)]
struct OfVersion {
    version: u32,
}

impl Profile {
    /// Reads the text of a profile.
    ///
    /// # Errors
    /// When it is none, in any part.
    pub fn parse(text: &[u8]) -> Result<Self, ProfileError> {
        if text.len() as u64 > MAX_PROFILE {
            return Err(ProfileError::TooLong);
        }
        let OfVersion { version } = serde_json::from_slice(text)?;
        if version != VERSION {
            return Err(ProfileError::Version(version));
        }
        let document: Document = serde_json::from_slice(text)?;
        let count: usize = document.reads.iter().map(|part| part.nar.len()).sum();
        if count > MAX_RANGES {
            return Err(ProfileError::TooMany);
        }
        let name = |name: String| StorePath::parse(&name).map_err(|_| ProfileError::Name { name });
        let range = |[start, end]: [u64; 2]| match start < end && end <= MAX_NAR {
            true => Ok(start..end),
            false => Err(ProfileError::Range { start, end }),
        };
        let read = |part: Part| {
            Ok(Read {
                path: name(part.path)?,
                ranges: part.nar.into_iter().map(range).collect::<Result<_, _>>()?,
            })
        };
        Ok(Self {
            root: name(document.root)?,
            reads: document
                .reads
                .into_iter()
                .map(read)
                .collect::<Result<_, ProfileError>>()?,
        })
    }

    /// The text of it: one line of JSON for each read.
    pub fn text(&self) -> String {
        let quoted = |path: &StorePath| serde_json::Value::from(path.to_string()).to_string();
        let mut text = format!(
            "{{\"version\":{VERSION},\"root\":{},\"reads\":[",
            quoted(&self.root)
        );
        for (n, read) in self.reads.iter().enumerate() {
            let ranges: Vec<String> = read
                .ranges
                .iter()
                .map(|range| format!("[{},{}]", range.start, range.end))
                .collect();
            let comma = if n == 0 { "" } else { "," };
            text += &format!(
                "{comma}\n{{\"path\":{},\"nar\":[{}]}}",
                quoted(&read.path),
                ranges.join(",")
            );
        }
        text + "\n]}\n"
    }

    /// Adds a part that was read.
    pub fn add(&mut self, path: &StorePath, range: Range<u64>) {
        match self.reads.last_mut() {
            Some(last) if last.path == *path => match last.ranges.last_mut() {
                Some(before) if before.end == range.start => before.end = range.end,
                _ => last.ranges.push(range),
            },
            _ => self.reads.push(Read {
                path: path.clone(),
                ranges: vec![range],
            }),
        }
    }

    /// How many store paths it reads, how many parts, and how many bytes of NARs: at most the largest
    /// number there is, since [`MAX_RANGES`] of the largest ranges are one more.
    pub fn extent(&self) -> (u64, u64, u64) {
        let mut paths: HashMap<StorePathHash, ()> = HashMap::new();
        let (mut parts, mut bytes) = (0, 0_u64);
        for read in &self.reads {
            paths.insert(read.path.hash(), ());
            parts += read.ranges.len() as u64;
            bytes = (read.ranges.iter().map(|r| r.end - r.start)).fold(bytes, u64::saturating_add);
        }
        (paths.len() as u64, parts, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0000000000000000000000000000000a-app";
    const B: &str = "0000000000000000000000000000000b-lib";

    fn path(name: &str) -> StorePath {
        StorePath::parse(name).unwrap()
    }

    fn example() -> Profile {
        let mut profile = Profile {
            root: path(A),
            reads: Vec::new(),
        };
        profile.add(&path(A), 0..65536);
        profile.add(&path(A), 65536..131_072);
        profile.add(&path(B), 0..65536);
        profile.add(&path(A), 262_144..300_000);
        profile.add(&path(A), 131_072..262_144);
        profile
    }

    #[test]
    fn is_one_line_for_each_read_and_comes_back_the_same() {
        let text = example().text();
        assert_eq!(
            text,
            format!(
                "{{\"version\":1,\"root\":\"{A}\",\"reads\":[\n\
                 {{\"path\":\"{A}\",\"nar\":[[0,131072]]}},\n\
                 {{\"path\":\"{B}\",\"nar\":[[0,65536]]}},\n\
                 {{\"path\":\"{A}\",\"nar\":[[262144,300000],[131072,262144]]}}\n]}}\n"
            )
        );
        assert_eq!(Profile::parse(text.as_bytes()).unwrap(), example());
        assert_eq!(example().extent(), (2, 4, 365_536 - 65_536 + 65_536));
    }

    #[test]
    fn the_extent_of_the_largest_profile_is_a_number() {
        let ranges = vec![format!("[0,{MAX_NAR}]"); MAX_RANGES].join(",");
        let reads = format!("[{{\"path\":\"{B}\",\"nar\":[{ranges}]}}]");
        let text = format!("{{\"version\":1,\"root\":\"{A}\",\"reads\":{reads}}}");
        let profile = Profile::parse(text.as_bytes()).unwrap();
        assert_eq!(profile.extent(), (1, MAX_RANGES as u64, u64::MAX));
    }

    #[test]
    fn what_is_no_profile_is_refused_as_a_whole() {
        let refused = |text: String| Profile::parse(text.as_bytes()).unwrap_err().to_string();
        let with = |reads: &str| {
            refused(format!(
                "{{\"version\":1,\"root\":\"{A}\",\"reads\":{reads}}}"
            ))
        };
        assert_eq!(refused("<html>".into()), "no profile");
        assert!(refused("{\"version\":2,\"new\":1}".into()).starts_with("version 2"));
        assert_eq!(refused("{\"version\":1}".into()), "no profile");
        assert!(with("[{\"path\":\"../x\",\"nar\":[]}]").contains("../x"));
        for bad in ["[[5,5]]", "[[6,5]]", "[[0,281474976710657]]"] {
            let text = with(&format!("[{{\"path\":\"{A}\",\"nar\":{bad}}}]"));
            assert!(text.ends_with("is no range of a NAR"), "{text}");
        }
        assert_eq!(
            with(&format!("[{{\"path\":\"{A}\",\"nar\":[[-1,5]]}}]")),
            "no profile"
        );
        let many = "[0,1],".repeat(MAX_RANGES + 1);
        let many = many.trim_end_matches(',');
        assert!(with(&format!("[{{\"path\":\"{A}\",\"nar\":[{many}]}}]")).contains("at most"));
        assert!(refused(" ".repeat(MAX_PROFILE as usize + 1)).contains("at most"));
    }
}
