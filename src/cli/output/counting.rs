//! Progress of what is counted: one line on a terminal, one every few seconds elsewhere.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget};

use super::{
    Terminal, human,
    progress::{BARS, LINE_INTERVAL, style},
};

/// Shows how many there are.
#[derive(Debug)]
pub struct Counting {
    what: &'static str,
    look: Look,
}

#[derive(Debug)]
enum Look {
    Quiet,
    Lines { next: Instant },
    Line(ProgressBar),
}

impl Counting {
    /// Counts `what`, a noun in the singular, on standard error, which `terminal` describes. What
    /// is done at once is not worth a line in a log.
    pub fn new(terminal: &Terminal, quiet: bool, what: &'static str) -> Self {
        let look = match (quiet, terminal.width) {
            (true, _) => Look::Quiet,
            (false, None) => Look::Lines {
                next: Instant::now() + LINE_INTERVAL,
            },
            (false, Some(_)) => {
                BARS.set_draw_target(ProgressDrawTarget::stderr());
                Look::Line(BARS.add(ProgressBar::new(0).with_style(style())))
            }
        };
        Self { what, look }
    }

    /// There are so many now, out of as many as are known to come.
    pub fn update(&mut self, now: Instant, done: usize, of: usize) {
        let text = || format!("{done} of {}", human::count(of as u64, self.what));
        match &mut self.look {
            Look::Quiet => {}
            Look::Line(bar) => bar.set_message(text()),
            Look::Lines { next } if now >= *next => {
                eprintln!("narfs: {}", text());
                *next = now + LINE_INTERVAL;
            }
            Look::Lines { .. } => {}
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Look::Line(bar) = &self.look {
            bar.finish_and_clear();
        }
    }
}
