//! Flags for settings, one for each key of [`KEYS`], taken by every verb.
//!
//! The few that people use daily stand in the help of every verb, the others in that of
//! `narfs config`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};

use crate::config::{Flags, KEYS, KeySpec, Kind, nearest};

/// Heading of these flags in help texts.
const HEADING: &str = "Settings";

/// What the flags for settings were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingFlags(pub Flags);

fn config_arg() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .global(true)
        .help_heading(HEADING)
        .help("Read this configuration file, and not those in the standard places")
        .long_help("Read this configuration file, and not those in the standard places.\n\n[env: NARFS_CONFIG]")
}

fn arg(spec: &'static KeySpec) -> Arg {
    let help = spec.help_text();
    let repeated = match spec.kind.is_list() {
        true => " May be repeated; what is given replaces the list that was set elsewhere.",
        false => "",
    };
    let values = match spec.kind {
        Kind::Choice(names) => format!("[values: {}]\n", names.join(", ")),
        _ => String::new(),
    };
    let (default, env) = (spec.default_text(), spec.env);
    let arg = Arg::new(spec.flag)
        .long(spec.flag)
        .value_name(spec.kind.placeholder())
        .global(true)
        .hide(!spec.prominent)
        .help_heading(HEADING)
        .help(first_clause(help))
        .long_help(format!(
            "{help}{repeated}\n\n{values}[default: {default}]\n[env: {env}]"
        ));
    match spec.kind {
        kind if kind.is_list() => arg.action(ArgAction::Append),
        // Alone it means true; a value follows `=`, so that it is never the next argument.
        Kind::Bool => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg.action(ArgAction::Set),
    }
}

/// What `-h` shows: up to the first mark, with no mark at the end.
fn first_clause(help: &str) -> &str {
    let end = [". ", ": ", "; "]
        .iter()
        .filter_map(|mark| help.find(mark))
        .min();
    help[..end.unwrap_or(help.len())].trim_end_matches('.')
}

/// Any setting by its key or flag: for programs that hand on what they were given, as the mount
/// helper does with the options of mount(8).
fn set_arg() -> Arg {
    Arg::new("set")
        .long("set")
        .value_name("KEY=VALUE")
        .global(true)
        .hide(true)
        .help_heading(HEADING)
        .action(ArgAction::Append)
        .help("The setting with this key or flag")
}

/// The setting that `KEY=VALUE` sets, and to what. Alone, a key means true.
fn set_of(text: &str) -> Result<(&'static KeySpec, String), clap::Error> {
    let (key, value) = text.split_once('=').unwrap_or((text, "true"));
    let named = |spec: &&KeySpec| [spec.name, spec.flag].contains(&key);
    match KEYS.iter().find(named) {
        Some(spec) => Ok((spec, value.to_owned())),
        None => {
            let near = nearest(key, KEYS.iter().flat_map(|spec| [spec.name, spec.flag]));
            let hint = near.map_or_else(
                || "`narfs config --help` lists them".into(),
                |near| format!("did you mean {near}?"),
            );
            let what = format!("there is no setting {key}; {hint}\n");
            Err(clap::Error::raw(ErrorKind::InvalidValue, what))
        }
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        let command = command.arg(config_arg()).arg(set_arg());
        command.args(KEYS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let set = matches.get_many::<String>("set").into_iter().flatten();
        let set: Vec<_> = set.map(|text| set_of(text)).collect::<Result<_, _>>()?;
        let given = |spec: &'static KeySpec| {
            let set = set.iter().filter(|(of, _)| of.name == spec.name);
            let flags = matches.get_many::<String>(spec.flag);
            let flags = flags.into_iter().flatten().cloned();
            let mut values: Vec<_> = set.map(|(_, value)| value.clone()).chain(flags).collect();
            if !spec.kind.is_list() {
                values.drain(..values.len().saturating_sub(1));
            }
            (!values.is_empty()).then_some((spec.name, values))
        };
        Ok(Self(Flags {
            config: matches.get_one::<PathBuf>("config").cloned(),
            settings: KEYS.iter().filter_map(given).collect(),
        }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
