//! Which binary caches are asked, and whose signatures count.

use std::{fmt, path::PathBuf};

use toml::{Spanned, de::DeValue};
use url::Url;

use super::{
    Secrets,
    value::{BadValue, Context, Kind, Value, only_known, scalar},
};

/// The cache that is asked when none is set.
pub const DEFAULT_CACHE: &str = "https://cache.nixos.org/";

/// The key that [`DEFAULT_CACHE`] signs with, as the Nix manual gives it (`trusted-public-keys`).
pub const DEFAULT_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// Schemes of caches that can be read.
const SCHEMES: [&str; 4] = ["http", "https", "file", "s3"];

/// Query parameters of caches' URLs that are no secrets; the values of others are masked.
const SAFE_PARAMETERS: [&str; 7] = [
    "region",
    "endpoint",
    "profile",
    "scheme",
    "priority",
    "trusted",
    "compression",
];

/// A binary cache.
#[derive(Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Its URL, possibly with credentials: show it through [`mask_url`] only.
    pub url: Url,
    /// Its priority instead of the one that it states itself: lower ones are asked first.
    pub priority: Option<u32>,
    /// Whether its paths need no trusted signature.
    pub trusted: bool,
    /// A file with a bearer token that every request to it carries.
    pub token_file: Option<PathBuf>,
}

/// `url` with user name, password and the values of parameters that may be secret replaced by
/// `***`. Text that is no URL becomes `***` entirely where it could hold any.
pub fn mask_url(url: &str) -> String {
    // `me:secret@host` parses too, as a URL of the scheme `me` without a host.
    let Some(mut parsed) = Url::parse(url)
        .ok()
        .filter(|parsed| !parsed.cannot_be_a_base())
    else {
        return if url.contains(['@', '?', '#']) {
            "***".into()
        } else {
            url.into()
        };
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // Neither fails for a URL that has a user name or password.
        let _ = parsed.set_password(None);
        let _ = parsed.set_username("***");
    }
    parsed.set_fragment(parsed.fragment().is_some().then_some("***"));
    if parsed.query().is_some() {
        let pairs: Vec<(String, String)> = parsed.query_pairs().into_owned().collect();
        if pairs
            .iter()
            .any(|(name, _)| !SAFE_PARAMETERS.contains(&name.as_str()))
        {
            let mut query = parsed.query_pairs_mut();
            query.clear();
            for (name, value) in &pairs {
                let safe = SAFE_PARAMETERS.contains(&name.as_str());
                query.append_pair(name, if safe { value } else { "***" });
            }
        }
    }
    parsed.into()
}

/// Masked, as everything that may reach a log.
impl fmt::Debug for CacheConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheConfig")
            .field("url", &self.shown_url())
            .field("priority", &self.priority)
            .field("trusted", &self.trusted)
            .field("token_file", &self.token_file)
            .finish()
    }
}

impl CacheConfig {
    /// Reads a URL; its parameters `priority` and `trusted`, which Nix knows too, are taken out.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shown = mask_url(text);
        let mut url = Url::parse(text).map_err(|error| {
            format!("{shown:?} is no URL ({error}): write https://HOST/, file:///DIRECTORY or s3://BUCKET")
        })?;
        if !SCHEMES.contains(&url.scheme()) {
            return Err(format!(
                "{shown:?}: narfs reads http, https, file and s3 caches"
            ));
        }
        let mut cache = Self {
            url: url.clone(),
            priority: None,
            trusted: false,
            token_file: None,
        };
        let mut others = Vec::new();
        let mut taken = false;
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "priority" => {
                    let priority = value
                        .parse()
                        .map_err(|_| format!("{shown:?}: priority={value} is no whole number"))?;
                    cache.priority = Some(priority);
                }
                "trusted" => cache.trusted = matches!(value.as_ref(), "true" | "1"),
                _ => {
                    others.push((name.into_owned(), value.into_owned()));
                    continue;
                }
            }
            taken = true;
        }
        if taken {
            url.set_query(None);
            if !others.is_empty() {
                url.query_pairs_mut().extend_pairs(others);
            }
            cache.url = url;
        }
        Ok(cache)
    }

    /// Its URL without credentials.
    pub fn shown_url(&self) -> String {
        mask_url(self.url.as_str())
    }
}

const TABLE_KEYS: [&str; 4] = ["url", "priority", "trusted", "token-file"];

fn cache_from_toml(
    value: &Spanned<DeValue<'_>>,
    context: Context<'_>,
) -> Result<CacheConfig, BadValue> {
    let Some(table) = value.get_ref().as_table() else {
        return CacheConfig::parse(&scalar(value)?)
            .map_err(|message| BadValue::new(message).at(value.span()));
    };
    only_known(table, "a cache", &TABLE_KEYS)?;
    let Some(url) = table.get("url") else {
        return Err(BadValue::new("a cache without url").at(value.span()));
    };
    let mut cache = CacheConfig::parse(&scalar(url)?)
        .map_err(|message| BadValue::new(message).at(url.span()))?;
    if let Some(priority) = table.get("priority") {
        let parsed = scalar(priority)?.parse();
        let parsed =
            parsed.map_err(|_| BadValue::new("priority is no whole number").at(priority.span()))?;
        cache.priority = Some(parsed);
    }
    if let Some(trusted) = table.get("trusted") {
        cache.trusted = bool::from_toml(trusted, context)?;
    }
    if let Some(file) = table.get("token-file") {
        cache.token_file = Option::from_toml(file, context)?;
    }
    Ok(cache)
}

/// The items of an array, or the one that stands there without brackets.
fn items<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Vec<&'a Spanned<DeValue<'i>>> {
    match value.get_ref().as_array() {
        Some(array) => array.iter().collect(),
        None => vec![value],
    }
}

impl Value for Vec<CacheConfig> {
    const KIND: Kind = Kind::Caches;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        text.split_whitespace()
            .map(|url| CacheConfig::parse(url).map_err(BadValue::new))
            .collect()
    }

    fn from_toml(value: &Spanned<DeValue<'_>>, context: Context<'_>) -> Result<Self, BadValue> {
        items(value)
            .into_iter()
            .map(|item| cache_from_toml(item, context))
            .collect()
    }

    fn from_flags(given: &[String], _: Context<'_>) -> Result<Self, BadValue> {
        given
            .iter()
            .map(|url| CacheConfig::parse(url).map_err(BadValue::new))
            .collect()
    }

    fn to_toml(&self, secrets: Secrets) -> toml::Value {
        let cache = |cache: &CacheConfig| {
            let url = match secrets {
                Secrets::Masked => cache.shown_url(),
                Secrets::Shown => cache.url.to_string(),
            };
            let mut table = toml::Table::from_iter([("url".to_string(), url.into())]);
            if let Some(priority) = cache.priority {
                table.insert("priority".into(), i64::from(priority).into());
            }
            if cache.trusted {
                table.insert("trusted".into(), true.into());
            }
            if let Some(file) = &cache.token_file {
                table.insert("token-file".into(), file.to_toml(secrets));
            }
            toml::Value::Table(table)
        };
        toml::Value::Array(self.iter().map(cache).collect())
    }
}

/// Public keys as texts, `NAME:BASE64`; `TrustedKeys` decodes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeyTexts(pub Vec<String>);

impl TrustedKeyTexts {
    fn read<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, BadValue> {
        keys.into_iter()
            .map(|key| Self::checked(key).map_err(BadValue::new))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The form is checked here, so that a bad key is reported with where it was set.
    fn checked(key: &str) -> Result<String, String> {
        /// Bytes of an ed25519 public key.
        const LENGTH: usize = 32;
        let (name, digits) = key
            .split_once(':')
            .ok_or_else(|| format!("{key:?} is no key: write NAME:BASE64"))?;
        match data_encoding::BASE64.decode(digits.as_bytes()) {
            Ok(bytes) if bytes.len() == LENGTH && !name.is_empty() => Ok(key.to_string()),
            // A secret key has the same form and twice the length: do not print it.
            Ok(bytes) if bytes.len() == 2 * LENGTH => Err(format!(
                "the key {name:?} is a secret key; its public half belongs here"
            )),
            _ => Err(format!(
                "{key:?} does not hold the {LENGTH} bytes of a public key"
            )),
        }
    }
}

impl Value for TrustedKeyTexts {
    const KIND: Kind = Kind::Keys;

    fn from_text(text: &str, _: Context<'_>) -> Result<Self, BadValue> {
        Self::read(text.split_whitespace())
    }

    fn from_toml(value: &Spanned<DeValue<'_>>, _: Context<'_>) -> Result<Self, BadValue> {
        let key = |item: &Spanned<DeValue<'_>>| {
            Self::checked(scalar(item)?.as_str())
                .map_err(|message| BadValue::new(message).at(item.span()))
        };
        items(value)
            .into_iter()
            .map(key)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn from_flags(given: &[String], _: Context<'_>) -> Result<Self, BadValue> {
        Self::read(given.iter().map(String::as_str))
    }

    fn to_toml(&self, _: Secrets) -> toml::Value {
        toml::Value::Array(self.0.iter().map(|key| key.as_str().into()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        assert_eq!(
            mask_url("https://me:pw@cache.example.org/x"),
            "https://***@cache.example.org/x"
        );
        assert_eq!(
            mask_url("https://token@cache.example.org/"),
            "https://***@cache.example.org/"
        );
        assert_eq!(
            mask_url("https://h/?sig=abc&region=x"),
            "https://h/?sig=***&region=x"
        );
        assert_eq!(
            mask_url("s3://bucket?region=eu-west-1"),
            "s3://bucket?region=eu-west-1"
        );
        assert_eq!(mask_url("me:pw@host"), "***");
        assert_eq!(mask_url(DEFAULT_CACHE), DEFAULT_CACHE);
        let error = CacheConfig::parse("ftp://me:pw@host/").unwrap_err();
        assert!(!error.contains("pw"), "{error}");
    }

    #[test]
    fn reads_what_nix_writes() {
        let cache = CacheConfig::parse("s3://b?priority=10&region=eu&trusted=true").unwrap();
        assert_eq!((cache.priority, cache.trusted), (Some(10), true));
        assert_eq!(cache.url.as_str(), "s3://b?region=eu");
        assert_eq!(
            CacheConfig::parse("https://h/?trusted=1")
                .unwrap()
                .url
                .as_str(),
            "https://h/"
        );
        assert!(CacheConfig::parse("cache.nixos.org").is_err());
        assert!(CacheConfig::parse("https://h/?priority=first").is_err());
    }

    #[test]
    fn keys_are_checked_and_secret_ones_not_repeated() {
        assert!(TrustedKeyTexts::checked(DEFAULT_KEY).is_ok());
        assert!(TrustedKeyTexts::checked("cache.nixos.org-1").is_err());
        assert!(TrustedKeyTexts::checked("a:AAAA").is_err());
        let secret = data_encoding::BASE64.encode(&[7; 64]);
        let error = TrustedKeyTexts::checked(&format!("mine:{secret}")).unwrap_err();
        assert!(error.contains("secret key") && !error.contains(&secret));
    }
}
