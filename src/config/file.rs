//! Configuration files: TOML, one key for each setting.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::Path,
};

use toml::de::DeTable;

use super::{
    Config, ConfigError, KEYS, Origin,
    keys::Raw,
    value::{BadValue, Context, nearest},
};

/// The largest configuration file that is read, in bytes. A thousand caches fit in a tenth of it.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// The text of a configuration file, at most [`MAX_FILE`] bytes of UTF-8.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.into(),
        source,
    };
    let mut text = String::new();
    // One byte more than allowed tells a file that is too large.
    File::open(path)
        .map_err(failed)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError::TooLarge {
            path: path.into(),
            limit: MAX_FILE,
        });
    }
    Ok(text)
}

/// As [`read`], with `None` for a file that does not exist.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, ConfigError> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(ConfigError::Read { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Parses `text` as a configuration file and checks all keys and values, without any I/O.
pub fn parse_file(text: &str) -> Result<(), ConfigError> {
    let path = Path::new("config.toml");
    let context = Context {
        base: Path::new("/"),
        home: None,
    };
    let mut config = defaults(context)?;
    apply(&mut config, path, text, context)
}

/// The defaults. They are literals of this program, and a test reads them; should one be wrong all
/// the same, this says so instead of panicking.
pub(super) fn defaults(context: Context<'_>) -> Result<Config, ConfigError> {
    Config::defaults(context).map_err(|bad| ConfigError::Value {
        origin: Origin::Default,
        key: "default",
        message: bad.message,
    })
}

/// The settings of the file that would be applied first: the `nix.conf` that it names.
pub(super) fn nix_conf_of(
    path: &Path,
    text: &str,
    context: Context<'_>,
) -> Result<Option<(std::path::PathBuf, Origin)>, ConfigError> {
    let table = parse(path, text)?;
    let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == "nix-conf") else {
        return Ok(None);
    };
    let origin = Origin::File {
        path: path.into(),
        line: line_of(text, key.span().start),
    };
    let mut scratch = defaults(context)?;
    scratch
        .set("nix-conf", &Raw::Toml(value), context, origin.clone())
        .map_err(|bad| described(path, text, "nix-conf", key.span(), bad))?;
    Ok(scratch.nix_conf.map(|file| (file, origin)))
}

/// Lets `config` have what the file `path` with the content `text` sets.
pub(super) fn apply(
    config: &mut Config,
    path: &Path,
    text: &str,
    context: Context<'_>,
) -> Result<(), ConfigError> {
    let table = parse(path, text)?;
    for (key, value) in &table {
        let name = key.get_ref().as_ref();
        let line = line_of(text, key.span().start);
        let Some(spec) = KEYS.iter().find(|spec| spec.name == name) else {
            let nearest = nearest(name, KEYS.iter().map(|spec| spec.name));
            return Err(ConfigError::UnknownKey {
                path: path.into(),
                line,
                key: name.into(),
                table: None,
                nearest,
            });
        };
        let origin = Origin::File {
            path: path.into(),
            line,
        };
        config
            .set(spec.name, &Raw::Toml(value), context, origin)
            .map_err(|bad| described(path, text, spec.name, key.span(), bad))?;
    }
    Ok(())
}

fn parse<'i>(path: &Path, text: &'i str) -> Result<DeTable<'i>, ConfigError> {
    DeTable::parse(text)
        .map(toml::Spanned::into_inner)
        .map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            ConfigError::Syntax {
                path: path.into(),
                line: line_of(text, at),
                column: column_of(text, at),
                message: error.message().to_string(),
            }
        })
}

fn described(
    path: &Path,
    text: &str,
    key: &'static str,
    span: Range<usize>,
    bad: BadValue,
) -> ConfigError {
    let line = line_of(text, bad.span.unwrap_or(span).start);
    match bad.unknown {
        Some((key, table, nearest)) => ConfigError::UnknownKey {
            path: path.into(),
            line,
            key,
            table: Some(table),
            nearest,
        },
        None => ConfigError::Value {
            origin: Origin::File {
                path: path.into(),
                line,
            },
            key,
            message: bad.message,
        },
    }
}

/// The line of byte `at`, from 1.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// The column of byte `at` in characters, from 1.
fn column_of(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    before
        .rsplit('\n')
        .next()
        .map_or(0, |line| line.chars().count())
        + 1
}
