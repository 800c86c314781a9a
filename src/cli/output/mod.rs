//! How results look: numbers for people, the table of `narfs status`, progress.
//!
//! Everything but [`Terminal::of_stdout`] and the drawing in [`progress`] is a pure function from
//! data to text.

use std::io::{self, IsTerminal, Write};

use super::{Exit, Failure};
use crate::config::Color;
pub use crate::failure::printable;

pub mod counting;
pub mod human;
pub mod progress;
pub mod table;

/// What the place that output goes to can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Columns of the terminal; `None` if it is none, for which output is made for programs.
    pub width: Option<usize>,
    /// Whether to colour.
    pub color: bool,
    /// Whether it shows more than ASCII.
    pub unicode: bool,
}

impl Terminal {
    /// Lines of the terminal that standard output is; `None` if it is none or does not tell.
    pub fn lines_of_stdout() -> Option<usize> {
        terminal_size::terminal_size_of(io::stdout()).map(|(_, height)| height.0.into())
    }

    /// A file or a pipe.
    pub const NONE: Self = Self {
        width: None,
        color: false,
        unicode: true,
    };

    /// Width that is assumed of a terminal that does not tell its own.
    const USUAL_WIDTH: usize = 80;

    /// Standard output.
    pub fn of_stdout(color: Color) -> Self {
        let size = terminal_size::terminal_size_of(io::stdout());
        Self::of(io::stdout().is_terminal(), size, color)
    }

    /// Standard error, where progress goes.
    pub fn of_stderr(color: Color) -> Self {
        let size = terminal_size::terminal_size_of(io::stderr());
        Self::of(io::stderr().is_terminal(), size, color)
    }

    fn of(
        terminal: bool,
        size: Option<(terminal_size::Width, terminal_size::Height)>,
        color: Color,
    ) -> Self {
        let variable = |name| {
            std::env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };
        let dumb = variable("TERM").is_none_or(|term| term == "dumb");
        // The first of these that is set decides (POSIX, "Internationalization Variables").
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(variable)
            .unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !dumb && variable("NO_COLOR").is_none(),
        };
        Self {
            width: terminal.then(|| size.map_or(Self::USUAL_WIDTH, |(width, _)| width.0.into())),
            color,
            unicode: !terminal || locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// `text` in a colour (a number of ECMA-48's SGR), where there are colours.
    pub fn paint(&self, sgr: u8, text: &str) -> String {
        if self.color {
            format!("\u{1b}[{sgr}m{text}\u{1b}[0m")
        } else {
            text.to_string()
        }
    }
}

/// Writes `text` to standard output. That nobody reads it any more (`narfs … | head`) is no
/// failure.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text.as_bytes()).map(drop)
}

/// Writes bytes to standard output; whether anybody still reads it.
pub fn write(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            Err(Failure::new(Exit::Failure, "standard output cannot be written").because(&error))
        }
    }
}

/// `value` as JSON: indented for people, on one line otherwise; with a line break at the end.
pub fn json(value: &impl serde::Serialize, indented: bool) -> Result<String, Failure> {
    let text = match indented {
        true => serde_json::to_string_pretty(value),
        false => serde_json::to_string(value),
    };
    let text = text.map_err(|error| {
        Failure::new(Exit::Failure, "the result cannot be written as JSON").because(&error)
    })?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(printable("a\n\tb \u{1b}[2Jc\r"), "a  b \u{fffd}[2Jc");
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert_eq!(Terminal::NONE.paint(31, "x"), "x");
        assert_eq!(
            Terminal {
                color: true,
                ..Terminal::NONE
            }
            .paint(31, "x"),
            "\u{1b}[31mx\u{1b}[0m"
        );
        assert!(Terminal::of(false, None, Color::Always).color);
        assert!(!Terminal::of(true, None, Color::Never).color);
        assert_eq!(Terminal::of(true, None, Color::Never).width, Some(80));
        assert_eq!(Terminal::of(false, None, Color::Auto).width, None);
    }
}
