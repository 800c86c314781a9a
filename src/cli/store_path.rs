//! Store paths on the command line.

use crate::nix::{StorePath, store_path::STORE_DIR};

/// A file in a store path, as `narfs ls`, `cat` and `run` take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFile {
    /// The store path.
    pub store_path: StorePath,
    /// The file in it, without a leading slash; empty for the store path itself.
    pub inside: String,
}

impl StoreFile {
    /// As an absolute path below `/nix/store`.
    pub fn absolute(&self) -> String {
        match self.inside.as_str() {
            "" => format!("{STORE_DIR}/{}", self.store_path),
            inside => format!("{STORE_DIR}/{}/{inside}", self.store_path),
        }
    }
}

/// Reads `/nix/store/HASH-NAME[/FILE]` or `HASH-NAME[/FILE]`.
pub fn parse_store_file(text: &str) -> Result<StoreFile, String> {
    let (store_path, rest) = StorePath::parse_with_rest(text).map_err(|error| error.to_string())?;
    let parts: Vec<&str> = rest
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(format!(
            "{text:?}: \"..\" cannot stand in a path into the store"
        ));
    }
    Ok(StoreFile {
        store_path,
        inside: parts.join("/"),
    })
}

/// Reads `/nix/store/HASH-NAME` or `HASH-NAME`. A file in it stands for the whole path, so that
/// the output of `which` or `readlink` can be given.
pub fn parse_store_path(text: &str) -> Result<StorePath, String> {
    parse_store_file(text).map(|file| file.store_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "00000000000000000000000000000000-hello-2.12.1";

    #[test]
    fn reads_both_spellings() {
        let file = parse_store_file(&format!("/nix/store/{BASE}//bin/./hello/")).unwrap();
        assert_eq!(file.inside, "bin/hello");
        assert_eq!(file.absolute(), format!("/nix/store/{BASE}/bin/hello"));
        assert_eq!(
            parse_store_file(BASE).unwrap().absolute(),
            format!("/nix/store/{BASE}")
        );
        assert_eq!(
            parse_store_path(&format!("{BASE}/bin/hello")).unwrap(),
            file.store_path
        );
    }

    #[test]
    fn refuses_what_leaves_the_store() {
        assert!(
            parse_store_file(&format!("{BASE}/../x"))
                .unwrap_err()
                .contains("..")
        );
        assert!(parse_store_file("/usr/bin/env").is_err());
        assert!(parse_store_file("hello").is_err());
    }
}
