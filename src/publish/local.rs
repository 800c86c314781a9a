//! A Nix store of this machine as a source.
//!
//! Which paths belong to a closure is in Nix's database; it is asked through the program that owns
//! it (`nix path-info --json`, from Nix 2.4 on). Its tables are nobody's interface, and scanning
//! the files for digests gives what Nix would find only where the inputs of the build are known.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;

use super::PublishError;
use crate::nix::{Compression, NarHash, NarInfo, STORE_DIR, Signature, StorePath};

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct LocalStore {
    /// The directory that holds `nix/store`.
    root: PathBuf,
}

impl LocalStore {
    /// The store in `directory`, if that is called `…/nix/store`.
    pub fn at(directory: &Path) -> Option<Self> {
        let root = directory
            .to_str()?
            .trim_end_matches('/')
            .strip_suffix(STORE_DIR)?;
        let root = if root.is_empty() { "/" } else { root };
        Some(Self { root: root.into() })
    }

    /// Its name for messages.
    pub fn name(&self) -> String {
        self.root.join(&STORE_DIR[1..]).display().to_string()
    }

    /// Where the files of a path are.
    pub fn files(&self, path: &StorePath) -> PathBuf {
        self.root.join(&STORE_DIR[1..]).join(path.to_string())
    }

    /// What Nix knows of `roots` and everything they refer to. Fields of a narinfo that say how a
    /// NAR is packed are empty.
    ///
    /// # Errors
    /// [`PublishError::Nix`].
    pub async fn closure(&self, roots: &[StorePath]) -> Result<Vec<NarInfo>, PublishError> {
        let mut command = tokio::process::Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command"]);
        if self.root != Path::new("/") {
            command.arg("--store").arg(&self.root);
        }
        command.args(["path-info", "--json", "--recursive"]);
        command.args(roots.iter().map(StorePath::absolute));
        let shown = format!(
            "nix path-info --json --recursive --store {}",
            self.root.display()
        );
        let failed = |what: String| PublishError::Nix {
            command: shown.clone(),
            what,
        };
        let done = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let done = done.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failed(
                "cannot be run: there is no `nix` here, which knows what the paths of a local store refer to; \
                 name a binary cache with --from instead"
                    .into(),
            ),
            _ => failed(format!("cannot be run: {error}")),
        })?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(failed(format!("failed: {}", said.trim())));
        }
        parse(&done.stdout)
            .map_err(|what| failed(format!("says what cannot be understood: {what}")))
    }
}

/// Both forms that there are: a list of objects with `path` (Nix up to 2.18), and an object by path.
fn parse(json: &[u8]) -> Result<Vec<NarInfo>, String> {
    let value: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    match &value {
        Value::Array(list) => list
            .iter()
            .map(|object| info(object["path"].as_str().unwrap_or_default(), object))
            .collect(),
        Value::Object(map) => map
            .iter()
            .map(|(path, object)| info(path, object))
            .collect(),
        _ => Err("neither a list nor an object".into()),
    }
}

fn info(path: &str, object: &Value) -> Result<NarInfo, String> {
    let store_path = |text: &str| match StorePath::parse_with_rest(text) {
        Ok((path, "")) => Ok(path),
        Ok(_) => Err(format!("{text} is no store path")),
        Err(error) => Err(format!("{text}: {error}")),
    };
    let text = |key: &str| object[key].as_str();
    let list = |key: &str| {
        let all = object[key].as_array().into_iter().flatten();
        all.filter_map(Value::as_str)
    };
    let hash = text("narHash").ok_or_else(|| format!("{path} is not valid in this store"))?;
    let mut references = list("references")
        .map(store_path)
        .collect::<Result<Vec<_>, _>>()?;
    references.sort();
    references.dedup();
    Ok(NarInfo {
        store_path: store_path(path)?,
        url: String::new(),
        compression: Compression::None,
        file_hash: None,
        file_size: None,
        nar_hash: NarHash::parse(hash).map_err(|e| format!("{path}: {e}"))?,
        nar_size: object["narSize"]
            .as_u64()
            .ok_or_else(|| format!("{path} has no narSize"))?,
        references,
        deriver: text("deriver").and_then(|t| store_path(t).ok()),
        signatures: list("signatures").filter_map(Signature::parse).collect(),
        ca: text("ca").filter(|ca| !ca.is_empty()).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_old_and_new_nix_say() {
        let path = "/nix/store/0z9wcv93z7bc9zqh1f5wwplw6rq7k925-hello";
        let old = format!(
            "[{{\"path\":\"{path}\",\"narHash\":\"sha256:04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w\",\
             \"narSize\":120,\"references\":[\"{path}\"],\"deriver\":null}}]"
        );
        let infos = parse(old.as_bytes()).unwrap();
        assert_eq!((infos[0].nar_size, infos[0].references.len()), (120, 1));
        let new = format!(
            "{{\"{path}\":{{\"narHash\":\"{}\",\"narSize\":120,\"references\":[],\"ca\":null,\"signatures\":[]}}}}",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
        );
        assert_eq!(parse(new.as_bytes()).unwrap()[0].store_path.name(), "hello");
        assert!(
            parse(format!("{{\"{path}\":null}}").as_bytes())
                .unwrap_err()
                .contains("not valid")
        );
    }

    #[test]
    fn only_a_store_is_one() {
        let root = |text: &str| LocalStore::at(Path::new(text)).map(|s| s.root);
        assert_eq!(root("/nix/store/"), Some("/".into()));
        assert_eq!(root("/mnt/nix/store"), Some("/mnt".into()));
        assert_eq!(root("/home/me"), None);
    }
}
