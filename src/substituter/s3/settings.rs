//! Which bucket, region, endpoint and keys an `s3://` URL comes to, given the environment and the
//! files in `~/.aws`. Pure.
//!
//! Order, as the AWS tools have it: the URL, the environment, the profile's files, the defaults.
//! Keys of a profile that the URL names beat those in the environment.

use url::Url;

use super::super::{location::S3Place, secret::Secret};

/// What the process has around it.
pub(super) struct Surroundings<'a> {
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    /// `~/.aws/credentials`; empty if there is none.
    pub(super) credentials: &'a str,
    /// `~/.aws/config`; empty if there is none.
    pub(super) config: &'a str,
}

/// Everything decided.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) region: String,
    /// A server other than Amazon's, or Amazon's under another domain.
    pub(super) endpoint: Option<Url>,
    /// The bucket's address, without a slash at its end.
    pub(super) base: Url,
    /// Whether the bucket is in the host's name and not in the path.
    pub(super) virtual_hosted: bool,
    pub(super) keys: Keys,
}

/// Where the keys come from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// A profile's, or the environment's.
    Given {
        id: String,
        secret: Secret,
        session: Option<Secret>,
    },
    /// Web identity or container: the environment says that there are some.
    Service,
    /// Perhaps this machine is an Amazon instance that has some.
    PerhapsInstance,
    /// None wanted.
    Anonymous,
}

/// Decides. Errors name the profile.
pub(super) fn settle(place: &S3Place, around: &Surroundings<'_>) -> Result<Settings, String> {
    let variable = |name: &str| (around.variable)(name).filter(|value| !value.is_empty());
    let name = place.profile.clone().or_else(|| variable("AWS_PROFILE"));
    let profile = Profile::read(around, name.as_deref().unwrap_or("default"));
    let region = place
        .region
        .clone()
        .or_else(|| variable("AWS_REGION"))
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .or_else(|| profile.get("region"))
        .unwrap_or_else(|| "us-east-1".into());
    if !region
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    {
        return Err(format!("{region:?} is no region"));
    }
    let endpoint = match &place.endpoint {
        Some(endpoint) => Some(endpoint.clone()),
        None => ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
            .into_iter()
            .find_map(variable)
            .or_else(|| profile.get("endpoint_url"))
            .map(|text| Url::parse(&text).map_err(|error| format!("endpoint {text:?}: {error}")))
            .transpose()?,
    };
    let endpoint = match endpoint {
        Some(endpoint) => Some(endpoint),
        // Amazon's regions in China have a domain of their own.
        None if region.starts_with("cn-") => {
            let text = format!("https://s3.{region}.amazonaws.com.cn");
            Some(Url::parse(&text).map_err(|error| error.to_string())?)
        }
        None => None,
    };
    let bucket = &place.bucket;
    // A dot in a bucket's name breaks the certificate of <bucket>.s3.<region>.amazonaws.com.
    let virtual_hosted = endpoint.is_none() && !bucket.contains('.');
    let base = match &endpoint {
        Some(endpoint) => format!("{}/{bucket}", endpoint.as_str().trim_end_matches('/')),
        None if virtual_hosted => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        None => format!("https://s3.{region}.amazonaws.com/{bucket}"),
    };
    let base = Url::parse(&base).map_err(|error| format!("bucket {bucket:?}: {error}"))?;
    let keys = keys(place, &variable, name.as_deref(), &profile)?;
    Ok(Settings {
        region,
        endpoint,
        base,
        virtual_hosted,
        keys,
    })
}

fn keys(
    place: &S3Place,
    variable: &dyn Fn(&str) -> Option<String>,
    name: Option<&str>,
    profile: &Profile<'_>,
) -> Result<Keys, String> {
    let yes = |name| variable(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if yes("AWS_SKIP_SIGNATURE") {
        return Ok(Keys::Anonymous);
    }
    let of_environment = || {
        Some(Keys::Given {
            id: variable("AWS_ACCESS_KEY_ID")?,
            secret: Secret::new(variable("AWS_SECRET_ACCESS_KEY")?),
            session: variable("AWS_SESSION_TOKEN").map(Secret::new),
        })
    };
    let of_profile = || {
        Some(Keys::Given {
            id: profile.get("aws_access_key_id")?,
            secret: Secret::new(profile.get("aws_secret_access_key")?),
            session: profile.get("aws_session_token").map(Secret::new),
        })
    };
    let named = place.profile.is_some();
    let found = if named {
        of_profile()
    } else {
        of_environment().or_else(of_profile)
    };
    if let Some(keys) = found {
        return Ok(keys);
    }
    if let (true, Some(name)) = (named, name) {
        return Err(format!(
            "profile {name:?} in ~/.aws has no aws_access_key_id and aws_secret_access_key \
             (other ways to get keys are not supported; export them as AWS_… variables)"
        ));
    }
    let service = (variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some()
        && variable("AWS_ROLE_ARN").is_some())
        || variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some()
        || (variable("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some()
            && variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").is_some());
    Ok(match service {
        true => Keys::Service,
        false if yes("AWS_EC2_METADATA_DISABLED") => Keys::Anonymous,
        false => Keys::PerhapsInstance,
    })
}

/// The settings of one profile.
struct Profile<'a> {
    /// From `credentials`, then from `config`: the first that has a key counts.
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Profile<'a> {
    fn read(around: &Surroundings<'a>, name: &str) -> Self {
        let mut pairs = section(around.credentials, |title| title == name);
        // In `config`, every profile but the default one has the word before its name.
        pairs.extend(section(around.config, |title| {
            let named = title
                .strip_prefix("profile")
                .is_some_and(|n| n.trim() == name);
            named || (name == "default" && title == name)
        }));
        Self { pairs }
    }

    fn get(&self, key: &str) -> Option<String> {
        let found = self
            .pairs
            .iter()
            .find(|(k, v)| k.eq_ignore_ascii_case(key) && !v.is_empty());
        found.map(|(_, value)| (*value).to_owned())
    }
}

/// The `key = value` lines of the sections whose title is wanted. Indented lines belong to the
/// setting above them and hold nothing that we read.
fn section(text: &str, wanted: impl Fn(&str) -> bool) -> Vec<(&str, &str)> {
    let mut inside = false;
    let mut pairs = Vec::new();
    for line in text.lines() {
        let line = line.trim_end();
        if line.trim_start().starts_with(['#', ';']) || line.starts_with([' ', '\t']) {
            continue;
        }
        if let Some(title) = line.strip_prefix('[') {
            inside = title
                .split_once(']')
                .is_some_and(|(title, _)| wanted(title.trim()));
        } else if inside && let Some((key, value)) = line.split_once('=') {
            pairs.push((key.trim(), value.trim()));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# keys\n[default]\naws_access_key_id = D\naws_secret_access_key=d=\n\n\
                               [ci]\naws_access_key_id=C\naws_secret_access_key = c\naws_session_token=t\n";
    const CONFIG: &str = "[default]\nregion = eu-north-1\n[profile ci]\nregion = eu-west-1\ns3 =\n  \
                          region = nested\n[profile sso]\nsso_session = x\n";

    fn place(profile: Option<&str>, region: Option<&str>, endpoint: Option<&str>) -> S3Place {
        S3Place {
            bucket: "bucket".into(),
            prefix: String::new(),
            region: region.map(Into::into),
            endpoint: endpoint.map(|text| Url::parse(text).unwrap()),
            profile: profile.map(Into::into),
        }
    }

    fn settled(
        place: &S3Place,
        files: bool,
        variables: &[(&str, &str)],
    ) -> Result<Settings, String> {
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let (credentials, config) = if files {
            (CREDENTIALS, CONFIG)
        } else {
            ("", "")
        };
        settle(
            place,
            &Surroundings {
                variable: &variable,
                credentials,
                config,
            },
        )
    }

    fn id(settings: &Settings) -> &str {
        match &settings.keys {
            Keys::Given { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_and_region_in_order() {
        let env = [
            ("AWS_ACCESS_KEY_ID", "E"),
            ("AWS_SECRET_ACCESS_KEY", "e"),
            ("AWS_REGION", "r-env"),
        ];
        let found = settled(&place(None, None, None), true, &env).unwrap();
        assert_eq!((id(&found), found.region.as_str()), ("E", "r-env"));
        let found = settled(&place(Some("ci"), None, None), true, &env[..2]).unwrap();
        assert_eq!((id(&found), found.region.as_str()), ("C", "eu-west-1"));
        let found = settled(&place(Some("ci"), Some("r-url"), None), true, &env).unwrap();
        assert_eq!((id(&found), found.region.as_str()), ("C", "r-url"));
        let found = settled(&place(None, None, None), true, &[]).unwrap();
        assert_eq!((id(&found), found.region.as_str()), ("D", "eu-north-1"));
        let found = settled(&place(None, None, None), true, &[("AWS_PROFILE", "ci")]).unwrap();
        assert_eq!(id(&found), "C");
        let missing = settled(&place(Some("sso"), None, None), true, &env).unwrap_err();
        assert!(missing.contains("\"sso\""), "{missing}");
    }

    #[test]
    fn without_keys() {
        let keys = |variables| {
            settled(&place(None, None, None), false, variables)
                .unwrap()
                .keys
        };
        assert_eq!(keys(&[]), Keys::PerhapsInstance);
        assert_eq!(
            keys(&[("AWS_EC2_METADATA_DISABLED", "true")]),
            Keys::Anonymous
        );
        assert_eq!(keys(&[("AWS_SKIP_SIGNATURE", "true")]), Keys::Anonymous);
        assert_eq!(
            keys(&[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x")]),
            Keys::Service
        );
        assert_eq!(
            keys(&[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"),
                ("AWS_ROLE_ARN", "arn")
            ]),
            Keys::Service
        );
    }

    #[test]
    fn addresses() {
        let base = |place: &S3Place| settled(place, false, &[]).unwrap().base.to_string();
        assert_eq!(
            base(&place(None, None, None)),
            "https://bucket.s3.us-east-1.amazonaws.com/"
        );
        assert_eq!(
            base(&place(None, Some("cn-north-1"), None)),
            "https://s3.cn-north-1.amazonaws.com.cn/bucket"
        );
        assert_eq!(
            base(&place(None, None, Some("http://h:9000/"))),
            "http://h:9000/bucket"
        );
        let dotted = S3Place {
            bucket: "a.b".into(),
            ..place(None, None, None)
        };
        assert_eq!(base(&dotted), "https://s3.us-east-1.amazonaws.com/a.b");
        let bad = settled(&place(None, Some("evil.org/"), None), false, &[]);
        assert!(bad.is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!(
            "{:?}",
            settled(&place(Some("ci"), None, None), true, &[]).unwrap()
        );
        assert!(
            !shown.contains("\"c\"") && !shown.contains("\"t\""),
            "{shown}"
        );
    }
}
