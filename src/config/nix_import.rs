//! What narfs takes from a `nix.conf`, includes followed.
//!
//! Not taken: `trusted-substituters`, which is what unprivileged users of a Nix daemon may turn on
//! and not what anybody turned on.

use std::path::Path;

use super::{
    CacheConfig, Config, ConfigError, Origin, file,
    keys::Raw,
    nix_conf,
    value::{Context, MAX_COUNT},
};

/// How deep `include`s may nest; the files on NixOS nest two deep.
const MAX_DEPTH: usize = 8;

/// How a setting of Nix becomes one of narfs.
#[derive(Clone, Copy)]
enum Into {
    /// The list replaces ours.
    List,
    /// The list is added to the one so far.
    Extra,
    /// The same text.
    Same,
    /// A number of seconds; 0 means no limit to Nix, and our default to us, as nothing here
    /// waits without a limit.
    TimeOut,
    /// A number; 0 means no limit to Nix.
    Count,
}

/// Nix's name, ours, and how.
const SETTINGS: [(&str, &str, Into); 14] = [
    ("substituters", "caches", Into::List),
    ("extra-substituters", "caches", Into::Extra),
    ("trusted-public-keys", "trusted-keys", Into::List),
    ("extra-trusted-public-keys", "trusted-keys", Into::Extra),
    ("netrc-file", "netrc-file", Into::Same),
    ("require-sigs", "require-signatures", Into::Same),
    ("connect-timeout", "connect-timeout", Into::TimeOut),
    ("stalled-download-timeout", "stall-timeout", Into::TimeOut),
    ("download-attempts", "tries", Into::Count),
    ("http-connections", "connections", Into::Count),
    (
        "narinfo-cache-positive-ttl",
        "narinfo-ttl-positive",
        Into::Same,
    ),
    (
        "narinfo-cache-negative-ttl",
        "narinfo-ttl-negative",
        Into::Same,
    ),
    // Older names that Nix still reads (aliases in `libstore/globals.hh`).
    ("binary-caches", "caches", Into::List),
    ("binary-cache-public-keys", "trusted-keys", Into::List),
];

/// Lists under construction: Nix adds the extra ones whatever the order of the lines.
#[derive(Default)]
struct Collected {
    settings: Vec<(&'static str, String, Origin)>,
    extra: Vec<(&'static str, String, Origin)>,
}

/// Lets `config` have what the `nix.conf` at `path` says.
pub(super) fn import(
    config: &mut Config,
    path: &Path,
    context: Context<'_>,
) -> Result<(), ConfigError> {
    let mut collected = Collected::default();
    collect(path, 0, &mut collected)?;
    let Collected { settings, extra } = collected;
    for (key, value, origin) in settings {
        set(config, key, &value, context, origin)?;
    }
    for (key, value, origin) in extra {
        let (caches, keys) = (config.caches.clone(), config.trusted_keys.clone());
        set(config, key, &value, context, origin)?;
        // `set` replaced the list: what was in it comes first.
        match key {
            "caches" => drop(config.caches.splice(..0, caches)),
            _ => drop(config.trusted_keys.0.splice(..0, keys.0)),
        }
    }
    Ok(())
}

fn collect(path: &Path, depth: usize, into: &mut Collected) -> Result<(), ConfigError> {
    let text = file::read(path)?;
    for setting in nix_conf::parse(&text) {
        let nix_conf::Setting { line, key, value } = setting;
        let optional = key == "!include";
        if optional || key == "include" {
            if depth == MAX_DEPTH {
                return Err(ConfigError::IncludeDepth {
                    path: path.into(),
                    line,
                    depth: MAX_DEPTH,
                });
            }
            let target = path.parent().unwrap_or(Path::new("/")).join(&value);
            // Whatever Nix does not insist on, narfs does not either: such files often hold
            // tokens that only root may read.
            if !optional || std::fs::File::open(&target).is_ok() {
                collect(&target, depth + 1, into)?;
            }
            continue;
        }
        let Some((_, ours, how)) = SETTINGS.iter().find(|(name, ..)| *name == key) else {
            continue;
        };
        let origin = Origin::NixConf {
            path: path.into(),
            line,
        };
        match how {
            Into::List | Into::Same => into.settings.push((ours, value, origin)),
            Into::Extra => into.extra.push((ours, value, origin)),
            Into::TimeOut if value == "0" => {}
            Into::TimeOut => into.settings.push((ours, value, origin)),
            Into::Count if value == "0" => {
                into.settings.push((ours, MAX_COUNT.to_string(), origin))
            }
            Into::Count => into.settings.push((ours, value, origin)),
        }
    }
    Ok(())
}

fn set(
    config: &mut Config,
    key: &'static str,
    value: &str,
    context: Context<'_>,
    origin: Origin,
) -> Result<(), ConfigError> {
    let readable = match key {
        "caches" => only_caches(config, value, &origin),
        _ => value.to_string(),
    };
    config
        .set(key, &Raw::Text(&readable), context, origin.clone())
        .map_err(|bad| ConfigError::Value {
            origin,
            key,
            message: bad.message,
        })
}

/// The URLs in `value` that narfs can read. Nix reads other kinds of stores too (`ssh://`,
/// `daemon`, a path): these are left out with a warning.
fn only_caches(config: &mut Config, value: &str, origin: &Origin) -> String {
    let mut kept = Vec::new();
    for url in value.split_ascii_whitespace() {
        match CacheConfig::parse(url) {
            Ok(_) => kept.push(url),
            Err(why) => config
                .warnings
                .push(format!("{origin}: a substituter is left out: {why}")),
        }
    }
    kept.join(" ")
}
