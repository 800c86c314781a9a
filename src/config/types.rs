//! The types of settings that have a few values with names.

use std::{fmt, net::SocketAddr, time::Duration};

use super::{
    Secrets, units,
    value::{BadValue, Context, Kind, MAX_COUNT, Value, no_time},
};
use crate::content::Amount;

/// An enum of named values that is a setting.
macro_rules! choice {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $variant_doc])+ $variant,)+ }

        impl $name {
            /// The names of its values, as they are written.
            pub const NAMES: &[&str] = &[$($text),+];

            /// Its name, as it is written.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl Value for $name {
            const KIND: Kind = Kind::Choice(Self::NAMES);

            fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(BadValue::new(format!("{text:?} is none of {}", Self::NAMES.join(", ")))),
                }
            }

            fn to_toml(&self, _: Secrets) -> toml::Value {
                self.as_str().into()
            }
        }
    };
}

choice! {
    /// When a reader gets bytes whose NAR was not hashed yet.
    Verify {
        /// As they arrive, under a narinfo with a trusted signature; the hash is checked when the
        /// NAR is complete.
        Stream = "stream",
        /// Never: only when the whole NAR was fetched and has the hash that was signed.
        BeforeRead = "before-read",
    }
}

choice! {
    /// Where access profiles come from: what a start read, fetched at the next cold one before it asks.
    Profiles {
        /// Recorded here, and published beside the caches that are made for narfs.
        On = "on",
        /// Recorded here, or imported.
        Local = "local",
        /// Nothing is recorded, nothing fetched by a profile.
        Off = "off",
    }
}

choice! {
    /// How the kernel opens files.
    OpenMode {
        /// Without asking narfs: cheap opens, pages in the page cache.
        NoOpen = "no-open",
    }
}

choice! {
    /// Whether containers read what is here whole from files of its own.
    NativeFiles {
        /// Never.
        Off = "off",
        /// Where the kernel can, and there is room.
        Auto = "auto",
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
        /// To the system's journal, with fields.
        Journald = "journald",
    }
}

choice! {
    /// Whether output has colours.
    Color {
        /// On a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.
        Auto = "auto",
        /// Always.
        Always = "always",
        /// Never.
        Never = "never",
    }
}

choice! {
    /// Whether other users than the one who mounts may read the mount.
    AllowOther {
        /// Yes for root, and where `/etc/fuse.conf` has `user_allow_other`.
        Auto = "auto",
        /// Yes; mounting fails where that is not allowed.
        Yes = "true",
        /// No.
        No = "false",
    }
}

/// How long an answer counts; zero for not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeToLive(pub Duration);

impl Value for TimeToLive {
    const KIND: Kind = Kind::Duration;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        units::parse_duration(text)
            .map(Self)
            .ok_or_else(|| no_time(text))
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        units::format_duration(self.0).into()
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl Value for ByteSize {
    const KIND: Kind = Kind::Size;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        units::parse_size(text).map(Self).ok_or_else(|| {
            BadValue::new(format!(
                "{text:?} is no size: write \"10GiB\", \"500MB\", \"64K\" or a number of bytes"
            ))
        })
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        units::format_size(self.0).into()
    }
}

/// The most that is kept, or the least that stays free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// No limit.
    Unlimited,
    /// This many bytes of disk.
    Bytes(u64),
    /// This many hundredths of the file system that the state directory is on.
    PerCent(u8),
}

impl Quota {
    /// The limit, if there is one.
    pub fn amount(self) -> Option<Amount> {
        match self {
            Self::Unlimited => None,
            Self::Bytes(bytes) => Some(Amount::Bytes(bytes)),
            Self::PerCent(part) => Some(Amount::PerCent(part)),
        }
    }
}

impl Value for Quota {
    const KIND: Kind = Kind::Quota;

    fn from_text(text: &str, context: Context<'_>) -> Result<Self, BadValue> {
        let part = |number: &str| match number.trim_end().parse() {
            Ok(part @ 0..=100) => Ok(Self::PerCent(part)),
            _ => Err(BadValue::new(format!(
                "{text:?} is no part of a file system: write a whole number from 0% to 100%"
            ))),
        };
        match (text, text.strip_suffix('%')) {
            ("none", _) => Ok(Self::Unlimited),
            (_, Some(number)) => part(number),
            _ => ByteSize::from_text(text, context).map(|size| Self::Bytes(size.0)),
        }
    }

    fn to_toml(&self, secrets: Secrets) -> toml::Value {
        match self {
            Self::Unlimited => "none".into(),
            Self::Bytes(bytes) => ByteSize(*bytes).to_toml(secrets),
            Self::PerCent(part) => format!("{part}%").into(),
        }
    }
}

/// A loopback address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(Option<SocketAddr>);

impl Listen {
    /// The address, if there is one.
    pub fn address(self) -> Option<SocketAddr> {
        self.0
    }
}

impl Value for Listen {
    const KIND: Kind = Kind::Listen;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        if text == "none" {
            return Ok(Self(None));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self(Some(address))),
            // Whoever can connect sees the names of store paths and programs.
            Ok(address) => Err(BadValue::new(format!(
                "{address} is no loopback address: what is shown there is not for others; use 127.0.0.1:PORT or \
                 [::1]:PORT, and a proxy that checks who asks"
            ))),
            Err(_) => Err(BadValue::new(format!(
                "{text:?} is no address: write \"127.0.0.1:9633\", \"[::1]:9633\" or none"
            ))),
        }
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        self.0
            .map_or_else(|| "none".into(), |a| a.to_string().into())
    }
}

/// A number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// Two for each processor, within [`Threads::AUTO`].
    Auto,
    /// This many.
    Exactly(u32),
}

impl Threads {
    /// A thread that reads kept bytes waits for the disk: fewer than four keep it from being busy.
    /// More than sixteen only wait for the same descriptor.
    pub const AUTO: std::ops::RangeInclusive<u32> = 4..=16;

    /// The number, at least 1.
    pub fn count(self) -> u32 {
        match self {
            Self::Exactly(count) => count,
            Self::Auto => {
                let processors = std::thread::available_parallelism().map_or(1, usize::from);
                let twice = u32::try_from(processors)
                    .unwrap_or(u32::MAX)
                    .saturating_mul(2);
                twice.clamp(*Self::AUTO.start(), *Self::AUTO.end())
            }
        }
    }
}

impl Value for Threads {
    const KIND: Kind = Kind::Threads;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(count @ 1..=MAX_COUNT)) => Ok(Self::Exactly(count)),
            _ => Err(BadValue::new(format!(
                "{text:?} is neither auto nor a number from 1 to {MAX_COUNT}"
            ))),
        }
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        match self {
            Self::Auto => "auto".into(),
            Self::Exactly(count) => i64::from(*count).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn limits_are_sizes_or_parts() {
        let context = Context {
            base: Path::new("/"),
            home: None,
        };
        let read = |text| Quota::from_text(text, context);
        for (text, want, written) in [
            ("none", Quota::Unlimited, "none"),
            ("10GiB", Quota::Bytes(10 << 30), "10GiB"),
            ("20%", Quota::PerCent(20), "20%"),
            ("5 %", Quota::PerCent(5), "5%"),
            ("0%", Quota::PerCent(0), "0%"),
        ] {
            let Ok(quota) = read(text) else {
                panic!("{text}")
            };
            assert_eq!(quota, want);
            assert_eq!(quota.to_toml(Secrets::Masked), written.into());
        }
        for wrong in ["%", "101%", "-1%", "1.5%", "some"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
