//! Flags for settings, one for each key of [`KEYS`], taken by every verb.
//!
//! The few that people use daily stand in the help of every verb, the others in that of
//! `narfs config`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Flags, KEYS, KeySpec, Kind};

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

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        command.arg(config_arg()).args(KEYS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |spec: &'static KeySpec| {
            let values = matches.get_many::<String>(spec.flag)?;
            Some((spec.name, values.cloned().collect()))
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
