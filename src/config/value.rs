//! How a value is read from a file or a text, and written again.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Secrets, units};

/// Why a value does not fit its key.
#[derive(Debug)]
pub(super) struct BadValue {
    pub(super) message: String,
    /// The bytes of the file that it is about, where that is more precise than the key.
    pub(super) span: Option<Range<usize>>,
    /// Set if what is wrong is a key inside a table: the key, the table, the nearest known key.
    pub(super) unknown: Option<(String, &'static str, Option<&'static str>)>,
}

impl BadValue {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span: None,
            unknown: None,
        }
    }

    pub(super) fn at(mut self, span: Range<usize>) -> Self {
        self.span.get_or_insert(span);
        self
    }
}

/// What a value may refer to.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// What relative paths are relative to: the folder of the file, or the working directory.
    pub(super) base: &'a Path,
    /// What `~/` stands for.
    pub(super) home: Option<&'a Path>,
}

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// true or false.
    Bool,
    /// Any text.
    Text,
    /// A whole number, from 1.
    Count,
    /// A time with a unit.
    Duration,
    /// A number of bytes with a unit.
    Size,
    /// A size, or none.
    Quota,
    /// A whole number, or auto.
    Threads,
    /// A loopback address with a port, or none.
    Listen,
    /// A path.
    Path,
    /// A path, or nothing.
    OptionalPath,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Binary caches.
    Caches,
    /// Public keys.
    Keys,
}

impl Kind {
    /// What a value is, for people.
    pub fn expects(self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Text => "a text".into(),
            Self::Count => format!("a whole number from 1 to {MAX_COUNT}"),
            Self::Duration => "a time with a unit (ms, s, m, h, d), or a number of seconds".into(),
            Self::Size => {
                "a size with a unit (KiB, MiB, GiB, TiB, KB, …), or a number of bytes".into()
            }
            Self::Quota => {
                "a size with a unit (KiB, MiB, GiB, TiB, KB, …), a number of bytes, a part of the file system (20%), or none".into()
            }
            Self::Threads => format!("a whole number from 1 to {MAX_COUNT}, or auto"),
            Self::Listen => "a loopback address with a port (127.0.0.1:9633), or none".into(),
            Self::Path | Self::OptionalPath => "a path".into(),
            Self::Choice([only]) => (*only).into(),
            Self::Choice([first @ .., last]) => format!("{} or {last}", first.join(", ")),
            Self::Choice([]) => "nothing".into(),
            Self::Caches => "a list of URLs or tables".into(),
            Self::Keys => "a list of NAME:BASE64".into(),
        }
    }

    /// What stands for the value in a flag's help.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Text => "FILTER",
            Self::Count | Self::Threads => "N",
            Self::Duration => "TIME",
            Self::Size | Self::Quota => "SIZE",
            Self::Listen => "ADDRESS",
            Self::Path => "DIR",
            Self::OptionalPath => "FILE",
            Self::Choice(_) => "WHICH",
            Self::Caches => "URL",
            Self::Keys => "KEY",
        }
    }

    /// Whether it holds several items, so that its flag may be repeated and its variable holds
    /// them with white space between.
    pub const fn is_list(self) -> bool {
        matches!(self, Self::Caches | Self::Keys)
    }
}

/// A type that a key can have.
pub(super) trait Value: Sized {
    /// What values it takes.
    const KIND: Kind;

    /// From an environment variable, a single flag, or a default.
    fn from_text(text: &str, context: Context<'_>) -> Result<Self, BadValue>;

    /// From a file.
    fn from_toml(value: &Spanned<DeValue<'_>>, context: Context<'_>) -> Result<Self, BadValue> {
        Self::from_text(&scalar(value)?, context).map_err(|bad| bad.at(value.span()))
    }

    /// From a flag, given once or several times.
    fn from_flags(given: &[String], context: Context<'_>) -> Result<Self, BadValue> {
        match given {
            [text] => Self::from_text(text, context),
            _ => Err(BadValue::new("may be given only once")),
        }
    }

    /// As it would stand in a file.
    fn to_toml(&self, secrets: Secrets) -> toml::Value;
}

/// A string, number or boolean as text.
pub(super) fn scalar(value: &Spanned<DeValue<'_>>) -> Result<String, BadValue> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(yes) => Ok(yes.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_string()),
        other => Err(
            BadValue::new(format!("{} is of the wrong type", other.type_str())).at(value.span()),
        ),
    }
}

/// The key of `known` that looks most like `key`, if one does at all.
pub(crate) fn nearest(
    key: &str,
    known: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    /// Below this, what is most alike is not alike: `strsim`'s measure goes from 0 to 1.
    const ALIKE: f64 = 0.7;
    let key = key.to_ascii_lowercase().replace('_', "-");
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&key, candidate), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Refuses the keys of `table` that are not among `known`.
pub(super) fn only_known(
    table: &DeTable<'_>,
    name: &'static str,
    known: &[&'static str],
) -> Result<(), BadValue> {
    for key in table.keys() {
        if !known.contains(&key.get_ref().as_ref()) {
            let nearest = nearest(key.get_ref(), known.iter().copied());
            let mut bad = BadValue::new("unknown key").at(key.span());
            bad.unknown = Some((key.get_ref().to_string(), name, nearest));
            return Err(bad);
        }
    }
    Ok(())
}

impl Value for bool {
    const KIND: Kind = Kind::Bool;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        match text {
            "true" | "yes" | "1" => Ok(true),
            "false" | "no" | "0" => Ok(false),
            _ => Err(BadValue::new(format!("{text:?} is neither true nor false"))),
        }
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        (*self).into()
    }
}

impl Value for String {
    const KIND: Kind = Kind::Text;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        Ok(text.to_string())
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        self.as_str().into()
    }
}

/// The largest whole number for settings that count things; far beyond any use.
pub(super) const MAX_COUNT: u32 = 1000;

impl Value for u32 {
    const KIND: Kind = Kind::Count;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        match text.parse() {
            Ok(number @ 1..=MAX_COUNT) => Ok(number),
            _ => Err(BadValue::new(format!(
                "{text:?} is no whole number from 1 to {MAX_COUNT}"
            ))),
        }
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        i64::from(*self).into()
    }
}

/// Why `text` is no time.
pub(super) fn no_time(text: &str) -> BadValue {
    BadValue::new(format!(
        "{text:?} is no time: write \"30s\", \"500ms\", \"2m\", \"1h\" or \"30d\""
    ))
}

/// A time-out: nothing waits for ever, and nothing can be done in no time.
impl Value for Duration {
    const KIND: Kind = Kind::Duration;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        match units::parse_duration(text) {
            Some(Duration::ZERO) => Err(BadValue::new("a time-out has to be longer than nothing")),
            Some(duration) => Ok(duration),
            None => Err(no_time(text)),
        }
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        units::format_duration(*self).into()
    }
}

/// An absolute path: `~/` is the home directory, a relative one starts at the context's base.
fn absolute(text: &str, context: Context<'_>) -> Result<PathBuf, BadValue> {
    match text.strip_prefix("~/") {
        Some(rest) => context.home.map(|home| home.join(rest)).ok_or_else(|| {
            BadValue::new(format!("{text:?}: there is no HOME that ~ could stand for"))
        }),
        None => Ok(context.base.join(text)),
    }
}

impl Value for PathBuf {
    const KIND: Kind = Kind::Path;

    fn from_text(text: &str, context: Context<'_>) -> Result<Self, BadValue> {
        match text {
            "" => Err(BadValue::new("an empty path")),
            text => absolute(text, context),
        }
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        self.to_string_lossy().into_owned().into()
    }
}

/// The empty text is none.
impl Value for Option<PathBuf> {
    const KIND: Kind = Kind::OptionalPath;

    fn from_text(text: &str, context: Context<'_>) -> Result<Self, BadValue> {
        match text {
            "" => Ok(None),
            text => absolute(text, context).map(Some),
        }
    }

    fn to_toml(&self, secrets: Secrets) -> toml::Value {
        self.as_ref()
            .map_or_else(|| "".into(), |path| path.to_toml(secrets))
    }
}
