//! For which machines an image is, in the words of Go: `linux/amd64`, `linux/arm64/v8`.

use std::fmt;

use oci_spec::image::{Descriptor, PlatformBuilder};
use serde_json::Value;

use super::ImageError;

/// Names of architectures: Rust's, Go's.
const ARCHITECTURES: [(&str, &str); 9] = [
    ("x86_64", "amd64"),
    ("aarch64", "arm64"),
    ("x86", "386"),
    ("arm", "arm"),
    ("riscv64", "riscv64"),
    ("powerpc64", "ppc64le"),
    ("s390x", "s390x"),
    ("loongarch64", "loong64"),
    ("mips64", "mips64le"),
];

/// An architecture, and which kind of it where that matters. The system is Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// As Go calls it.
    pub architecture: String,
    /// `v7`, `v8`, …
    pub variant: Option<String>,
}

impl Platform {
    /// The machine that this runs on.
    pub fn of_this_machine() -> Self {
        let here = std::env::consts::ARCH;
        let known = ARCHITECTURES.iter().find(|(rust, _)| *rust == here);
        Self {
            architecture: known.map_or(here, |(_, go)| go).to_owned(),
            variant: None,
        }
    }

    /// Reads `[linux/]ARCHITECTURE[/VARIANT]`; the names that Nix and uname use are understood.
    ///
    /// # Errors
    /// What is wrong with it, for the command line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').peekable();
        if parts.peek() == Some(&"linux") {
            parts.next();
        }
        let architecture = parts.next().unwrap_or_default();
        let (variant, more) = (parts.next(), parts.next());
        let known = ARCHITECTURES
            .iter()
            .find(|(rust, go)| [*rust, *go].contains(&architecture));
        let plain =
            |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric());
        match known {
            Some((_, go)) if more.is_none() && variant.is_none_or(plain) => Ok(Self {
                architecture: (*go).to_owned(),
                variant: variant.map(str::to_owned),
            }),
            _ => {
                let names: Vec<_> = ARCHITECTURES.iter().map(|(_, go)| *go).collect();
                Err(format!(
                    "write linux/ARCHITECTURE or linux/ARCHITECTURE/VARIANT; architectures are {}",
                    names.join(", ")
                ))
            }
        }
    }

    /// What a descriptor of a manifest says; `None` if it does not, or it is no image for Linux.
    pub(super) fn of_descriptor(descriptor: &Descriptor) -> Option<Self> {
        let platform = descriptor.platform().as_ref()?;
        (platform.os().to_string() == "linux").then(|| Self {
            architecture: platform.architecture().to_string(),
            variant: platform.variant().clone(),
        })
    }

    /// What the configuration of an image says.
    pub(super) fn of_config(config: &Value) -> Option<Self> {
        if config["os"] != "linux" {
            return None;
        }
        Some(Self {
            architecture: config["architecture"].as_str()?.to_owned(),
            variant: config["variant"].as_str().map(str::to_owned),
        })
    }

    /// Whether an image for the other one runs on this one. All of arm64 is of the same kind,
    /// whether that is said or not.
    pub(super) fn takes(&self, other: &Self) -> bool {
        let usual = |p: &Self| match (p.architecture.as_str(), p.variant.as_deref()) {
            ("arm64", None) => Some("v8".to_owned()),
            (_, variant) => variant.map(str::to_owned),
        };
        self.architecture == other.architecture
            && (self.variant.is_none() || usual(self) == usual(other))
    }

    pub(super) fn for_descriptor(&self) -> Result<oci_spec::image::Platform, ImageError> {
        let platform = PlatformBuilder::default()
            .os("linux")
            .architecture(self.architecture.as_str());
        Ok(match &self.variant {
            Some(variant) => platform.variant(variant.clone()),
            None => platform,
        }
        .build()?)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("aarch64", "linux/arm64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "linux",
            "windows/amd64",
            "linux/z80",
            "linux/arm/",
            "linux/arm/v7/x",
        ] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
        let here = Platform::of_this_machine().to_string();
        assert_eq!(Platform::parse(&here).unwrap().to_string(), here);
    }

    #[test]
    fn a_variant_counts_where_it_is_asked_for() {
        let platform = |text| Platform::parse(text).unwrap();
        assert!(platform("arm64").takes(&platform("arm64/v8")));
        assert!(platform("arm64/v8").takes(&platform("arm64")));
        assert!(platform("arm").takes(&platform("arm/v7")));
        assert!(!platform("arm/v6").takes(&platform("arm/v7")));
        assert!(!platform("arm64").takes(&platform("amd64")));
    }
}
