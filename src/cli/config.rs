//! `narfs config`: which settings are in effect, and why.

use super::{Failure, output};
use crate::config::{Config, KEYS, KeySpec, Secrets, nearest};

const LONG: &str = "\
Prints the settings in effect and where each came from: default, file and line, environment \
variable, flag, or nix.conf. Credentials in URLs are masked. Nothing is started or fetched.";

/// Arguments of `narfs config`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Show the settings in effect and where each came from", long_about = LONG, after_long_help = after_help())]
pub struct ConfigArgs {
    /// Print one JSON object: for each key its value, origin and source
    #[arg(long, conflicts_with = "toml")]
    pub json: bool,

    /// Print a configuration file that has the same effect
    #[arg(long)]
    pub toml: bool,

    /// Print only the values of these settings in turn, lists a line each
    #[arg(value_name = "KEY", conflicts_with_all = ["json", "toml"], value_parser = key)]
    pub keys: Vec<&'static str>,
}

fn key(text: &str) -> Result<&'static str, String> {
    let names = || KEYS.iter().map(|spec| spec.name);
    names().find(|name| *name == text).ok_or_else(|| {
        let near = nearest(text, names());
        let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        format!("there is no such setting{hint}")
    })
}

/// Prints `config` to standard output.
pub fn run(config: &Config, args: &ConfigArgs) -> Result<(), Failure> {
    output::print(&render(config, args))
}

fn render(config: &Config, args: &ConfigArgs) -> String {
    if !args.keys.is_empty() {
        let values = args.keys.iter();
        values
            .map(|key| value(config.value(key, Secrets::Masked)))
            .collect()
    } else if args.json {
        format!("{:#}\n", config.to_json())
    } else if args.toml {
        config.to_toml(Secrets::Masked)
    } else {
        config.to_text()
    }
}

/// A value as scripts take it.
fn value(value: Option<toml::Value>) -> String {
    match value {
        Some(toml::Value::String(text)) => text + "\n",
        Some(toml::Value::Array(items)) => items
            .into_iter()
            .map(|item| self::value(Some(item)))
            .collect(),
        Some(other) => format!("{other}\n"),
        None => String::new(),
    }
}

/// Every setting, from the table: the one place where all of them are explained in a terminal.
fn after_help() -> String {
    let mut text = String::from("Settings, by their key in configuration files:\n");
    KEYS.iter().for_each(|spec| text.push_str(&setting(spec)));
    text.push_str(AFTER);
    text
}

fn setting(spec: &KeySpec) -> String {
    let repeated = match spec.kind.is_list() {
        true => " (may be repeated)",
        false => "",
    };
    format!(
        "  {}\n    {}\n      value:    {}\n      default:  {}\n      flag:     --{}{repeated}\n      variable: {}\n\n",
        spec.name,
        spec.help_text(),
        spec.kind.expects(),
        spec.default_text(),
        spec.flag,
        spec.env
    )
}

const AFTER: &str = "\
A cache can also be a table, with these keys:
  url          its URL
  priority     a whole number; caches with lower ones are asked first; else what the cache states
  trusted      true if its paths need no signature
  token-file   a file with a bearer token, sent with every request to this cache
In a URL, the parameters priority and trusted do the same: https://cache.example.org?priority=10

Files:
  /etc/narfs/config.toml               configuration of the machine
  $XDG_CONFIG_HOME/narfs/config.toml   configuration of the user (else ~/.config/narfs/config.toml)
  Keys that the second sets win over the first; --config FILE or NARFS_CONFIG replaces both.

Exit status:
  0  printed
  2  the command line or the configuration is wrong

Examples:
  $ narfs config
  $ narfs config state-dir
  $ narfs config --json | jq -r '.caches.value[].url'
  $ NARFS_QUOTA=10GiB narfs config --toml > ~/.config/narfs/config.toml";
