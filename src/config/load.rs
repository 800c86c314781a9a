//! The layers of a configuration, in their order.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Config, ConfigError, KEYS, Origin, file,
    keys::Raw,
    nix_import,
    value::{Context, nearest},
};

/// What stands for "nobody set it" until the user is known: no path that anybody could mean.
pub(super) const UNSET_STATE_DIR: &str = "/\u{0}";

/// Where root's state is.
const SYSTEM_STATE_DIR: &str = "/var/lib/narfs";

/// The variable that names a configuration file, as `--config` does.
pub(super) const CONFIG_VARIABLE: &str = "NARFS_CONFIG";

/// The variables that tell where a user's files are.
const USER_VARIABLES: [&str; 3] = ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"];

/// What of the process a configuration depends on.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The environment variables that matter: `NARFS_…` and those that tell where the
    /// user's files are.
    pub variables: BTreeMap<String, String>,
    /// Whether this is the super-user.
    pub root: bool,
    /// The working directory, where relative paths in variables and flags start.
    pub directory: PathBuf,
    /// The configuration file of the machine.
    pub system_file: PathBuf,
}

impl Environment {
    /// That of this process. Fails if a variable that matters is not UTF-8.
    pub fn of_process() -> Result<Self, ConfigError> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str() else { continue };
            if name.starts_with("NARFS_") || USER_VARIABLES.contains(&name) {
                let value = value
                    .into_string()
                    .map_err(|_| ConfigError::NotUtf8(name.into()))?;
                variables.insert(name.into(), value);
            }
        }
        Ok(Self {
            variables,
            root: rustix::process::geteuid().is_root(),
            // Without a working directory (it was removed), relative paths start at the root.
            directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            system_file: "/etc/narfs/config.toml".into(),
        })
    }

    /// The value of a variable; empty ones count as unset, as the XDG specification wants it.
    fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A directory of the user's: from its variable, or in the home directory.
    fn user_directory(&self, variable: &str, in_home: &str) -> Option<PathBuf> {
        let set = self
            .get(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        set.or_else(|| self.get("HOME").map(|home| Path::new(home).join(in_home)))
    }

    fn context(&self) -> Context<'_> {
        Context {
            base: &self.directory,
            home: self.get("HOME").map(Path::new),
        }
    }
}

/// What the command line sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config FILE`: instead of the files in the standard places.
    pub config: Option<PathBuf>,
    /// Keys with what their flags were given, in order.
    pub settings: Vec<(&'static str, Vec<String>)>,
}

impl Flags {
    /// As they would be typed: for a child that is to have the same settings.
    pub fn to_args(&self) -> Vec<std::ffi::OsString> {
        let mut args = Vec::new();
        if let Some(file) = &self.config {
            let mut arg = std::ffi::OsString::from("--config=");
            arg.push(file);
            args.push(arg);
        }
        for (name, values) in &self.settings {
            let Some(spec) = super::key_spec(name) else {
                continue;
            };
            args.extend(
                values
                    .iter()
                    .map(|value| format!("--{}={value}", spec.flag).into()),
            );
        }
        args
    }
}

/// The configuration that `environment` and `flags` make. Reads the configuration files.
pub fn load(environment: &Environment, flags: &Flags) -> Result<Config, ConfigError> {
    let context = environment.context();
    let mut config = file::defaults(context)?;
    for (path, required) in files(environment, flags) {
        let text = if required {
            Some(file::read(&path)?)
        } else {
            file::read_if_there(&path)?
        };
        let Some(text) = text else { continue };
        let context = Context {
            base: path.parent().unwrap_or(context.base),
            ..context
        };
        if let Some((nix_conf, _)) = file::nix_conf_of(&path, &text, context)? {
            nix_import::import(&mut config, &nix_conf, context)?;
        }
        file::apply(&mut config, &path, &text, context)?;
        config.files.push(path);
    }
    apply_variables(&mut config, environment)?;
    apply_flags(&mut config, flags, context)?;
    if config.state_dir == Path::new(UNSET_STATE_DIR) {
        config.state_dir = default_state_dir(environment)?;
    }
    Ok(config)
}

/// The configuration files, and whether they have to be there.
fn files(environment: &Environment, flags: &Flags) -> Vec<(PathBuf, bool)> {
    let named = flags
        .config
        .clone()
        .or_else(|| environment.get(CONFIG_VARIABLE).map(PathBuf::from));
    if let Some(path) = named {
        return vec![(environment.directory.join(path), true)];
    }
    let user = environment.user_directory("XDG_CONFIG_HOME", ".config");
    let user = user.map(|directory| (directory.join("narfs/config.toml"), false));
    std::iter::once((environment.system_file.clone(), false))
        .chain(user)
        .collect()
}

fn apply_variables(config: &mut Config, environment: &Environment) -> Result<(), ConfigError> {
    let context = environment.context();
    let set: Vec<_> = KEYS
        .iter()
        .filter_map(|spec| Some((spec, environment.get(spec.env)?)))
        .collect();
    let layer = set.iter().map(|(spec, value)| {
        (
            spec.name,
            Raw::Text(value),
            Origin::Environment(spec.env.into()),
        )
    });
    apply_layer(config, layer.collect(), context)?;
    for name in environment
        .variables
        .keys()
        .filter(|name| name.starts_with("NARFS_"))
    {
        if name == CONFIG_VARIABLE || KEYS.iter().any(|spec| spec.env == name) {
            continue;
        }
        let key = name.trim_start_matches("NARFS_").to_lowercase();
        let hint = nearest(&key, KEYS.iter().map(|spec| spec.name))
            .and_then(super::key_spec)
            .map_or_else(String::new, |spec| format!("; did you mean {}?", spec.env));
        config.warnings.push(format!(
            "the environment variable {name} means nothing to narfs{hint}"
        ));
    }
    Ok(())
}

fn apply_flags(
    config: &mut Config,
    flags: &Flags,
    context: Context<'_>,
) -> Result<(), ConfigError> {
    let layer = flags.settings.iter().map(|(key, given)| {
        let flag = super::key_spec(key).map_or(*key, |spec| spec.flag);
        (*key, Raw::Flags(given), Origin::Flag(format!("--{flag}")))
    });
    apply_layer(config, layer.collect(), context)
}

/// Applies settings of one layer, the `nix.conf` among them first, so that the others win over
/// what stands in it.
fn apply_layer(
    config: &mut Config,
    mut layer: Vec<(&'static str, Raw<'_, '_>, Origin)>,
    context: Context<'_>,
) -> Result<(), ConfigError> {
    layer.sort_by_key(|(key, ..)| *key != "nix-conf");
    for (key, raw, origin) in layer {
        config
            .set(key, &raw, context, origin.clone())
            .map_err(|bad| ConfigError::Value {
                origin,
                key,
                message: bad.message,
            })?;
        if let ("nix-conf", Some(path)) = (key, config.nix_conf.clone()) {
            nix_import::import(config, &path, context)?;
        }
    }
    Ok(())
}

fn default_state_dir(environment: &Environment) -> Result<PathBuf, ConfigError> {
    if environment.root {
        return Ok(SYSTEM_STATE_DIR.into());
    }
    let data = environment
        .user_directory("XDG_DATA_HOME", ".local/share")
        .ok_or(ConfigError::NoStateDir)?;
    Ok(data.join("narfs"))
}
