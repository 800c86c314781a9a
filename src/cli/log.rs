//! Log lines on standard error, or in the system's journal.

mod repeats;

use std::io::Write;

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::{
    Exit, Failure,
    output::{Terminal, progress::LogWriter},
};
use crate::config::{Config, LogFormat, Origin};

/// What is logged where nobody set it, by commands that do one thing and end: their output says
/// what they did.
const BRIEF: &str = "warn";

/// Starts logging as `config` says; where it does not say, less for a command that does not
/// `serve`. To be called once in a process.
pub fn init(config: &Config, serves: bool) -> Result<(), Failure> {
    let filter = match config.origin("log") {
        Origin::Default if !serves => EnvFilter::new(BRIEF),
        _ => filter(config)?,
    };
    // A command that does one thing says each thing once.
    let repeats = serves.then(repeats::Repeats::default);
    let started = tracing_subscriber::registry()
        .with(lines(config))
        .with(filter)
        .with(repeats.clone())
        .try_init();
    started.map_err(|error| {
        Failure::new(Exit::Failure, "logging cannot be started").because(&error)
    })?;
    if let Some(repeats) = repeats {
        repeats.tell();
    }
    Ok(())
}

/// What makes lines of events.
fn lines(config: &Config) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = fmt::layer()
        .with_writer(|| LogWriter)
        // A line that can't be written, on a full disk mostly, is lost. Complaining about that on
        // standard error, which is the same file, would panic and take a fetch along.
        .log_internal_errors(false);
    let text = |lines: fmt::Layer<Registry, _, _, _>| {
        let color = Terminal::of_stderr(config.color).color;
        lines.with_ansi(color).with_target(false).boxed()
    };
    match config.log_format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => text(lines),
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(journal) => {
                let journal = journal.with_syslog_identifier("narfs".into());
                journal.with_field_prefix(Some("NARFS".into())).boxed()
            }
            // A daemon that readers wait for starts all the same.
            Err(error) => {
                // If that can't be written, neither can what follows.
                let _ = writeln!(
                    std::io::stderr(),
                    "narfs: the system's journal can't be reached ({error}); log lines go to standard error"
                );
                text(lines)
            }
        },
    }
}

fn filter(config: &Config) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(&config.log).map_err(|error| {
        let what = format!("{}: {:?} is no filter for log lines", config.origin("log"), config.log);
        Failure::new(Exit::Usage, what)
            .because(&error)
            .hint("write a level (error, warn, info, debug, trace) or levels by part: warn,narfs::substituter=debug")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, load};

    fn config(log: &str) -> Config {
        let environment = Environment {
            root: true,
            directory: "/".into(),
            system_file: "/dev/null".into(),
            ..Default::default()
        };
        load(
            &environment,
            &Flags {
                config: None,
                settings: vec![("log", vec![log.into()])],
            },
        )
        .unwrap()
    }

    #[test]
    fn a_wrong_filter_is_a_usage_error_that_says_where_it_is_from() {
        assert!(filter(&config("warn,narfs::substituter=debug")).is_ok());
        let failure = filter(&config("narfs=loud")).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure.what.starts_with("--log: \"narfs=loud\""),
            "{failure}"
        );
    }
}
