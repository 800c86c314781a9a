//! Progress of `narfs prefetch`: bars on a terminal, a line every few seconds elsewhere.

use std::{
    io::{self, Write},
    sync::LazyLock,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use narfs_state_schema::{PathState, PathStatus, percent};

use super::{Terminal, human};

/// Bars for single paths besides the one for all; more would push it off small screens.
const PATH_BARS: usize = 6;

/// Between two lines where there is no terminal: a log of a long run stays readable.
pub(super) const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The time over which the rate is averaged: short enough to show a stall, long enough to read.
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// All bars of the process, so that log lines can be written between them.
pub(super) static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::hidden()));

/// Standard error for log lines: bars step aside while one is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().lock().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Bytes per second, smoothed.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    last: Option<(Instant, u64)>,
    /// The rates so far, each counting less the longer ago it was, and how much they count
    /// together: a short first interval must not pass for the whole window.
    sum: f64,
    weight: f64,
}

impl Meter {
    /// `total` bytes have arrived by `now`. Counts nothing when the total falls.
    pub fn update(&mut self, now: Instant, total: u64) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, total));
            return;
        };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let current = total.saturating_sub(before) as f64 / seconds;
        // An exponential average that does not depend on how often this is called.
        let keep = (-seconds / RATE_WINDOW.as_secs_f64()).exp();
        self.sum = self.sum * keep + current * (1.0 - keep);
        self.weight = self.weight * keep + (1.0 - keep);
        self.last = Some((now, total));
    }

    /// Bytes per second; 0 before two updates.
    pub fn rate(&self) -> f64 {
        if self.weight > 0.0 {
            self.sum / self.weight
        } else {
            0.0
        }
    }

    /// The time that `bytes` will take at this rate; `None` if nothing arrives.
    pub fn time_for(&self, bytes: u64) -> Option<Duration> {
        let seconds = bytes as f64 / self.rate();
        // More than that is no forecast.
        const LONGEST: f64 = 100.0 * 86_400.0;
        (seconds.is_finite() && seconds < LONGEST).then(|| Duration::from_secs_f64(seconds))
    }
}

/// `3 of 12 paths, 82.3 MiB of 284 MiB (28%), 12.3 MiB/s, 17 s left`.
pub fn line(paths: &[PathStatus], meter: &Meter) -> String {
    let (fetched, size) = sums(paths);
    let done = paths
        .iter()
        .filter(|path| path.state == PathState::Complete)
        .count();
    let mut line = format!(
        "{done} of {}, {} of {} ({})",
        human::count(paths.len() as u64, "path"),
        human::bytes(fetched),
        human::bytes(size),
        human::percent(percent(fetched, size))
    );
    if fetched < size {
        line.push_str(", ");
        line.push_str(&human::rate(meter.rate()));
        if let Some(left) = meter.time_for(size - fetched) {
            line.push_str(", ");
            line.push_str(&human::duration(left));
            line.push_str(" left");
        }
    }
    let errors = paths.iter().filter(|path| path.error.is_some()).count() as u64;
    if errors > 0 {
        line.push_str(", ");
        line.push_str(&human::count(errors, "error"));
    }
    line
}

fn sums(paths: &[PathStatus]) -> (u64, u64) {
    paths.iter().fold((0, 0), |(fetched, size), path| {
        (fetched + path.fetched_size, size + path.size)
    })
}

/// Shows how far it is.
#[derive(Debug)]
pub struct Progress {
    look: Look,
    meter: Meter,
}

#[derive(Debug)]
enum Look {
    Quiet,
    Lines {
        next: Option<Instant>,
    },
    Bars {
        all: ProgressBar,
        paths: Vec<ProgressBar>,
        bar: Bar,
    },
}

/// How bars are drawn.
#[derive(Debug, Clone, Copy)]
struct Bar {
    width: usize,
    unicode: bool,
}

impl Bar {
    /// Columns of a terminal from which on there is room for a long bar beside [`line()`].
    const ROOMY: usize = 100;

    fn for_terminal(columns: usize, unicode: bool) -> Self {
        Self {
            width: if columns < Self::ROOMY { 8 } else { 16 },
            unicode,
        }
    }

    fn with(self, fetched: u64, size: u64, text: &str) -> String {
        format!(
            "{}  {text}",
            human::bar(percent(fetched, size), self.width, self.unicode)
        )
    }
}

impl Progress {
    /// For standard error, which `terminal` describes.
    pub fn new(terminal: &Terminal, quiet: bool) -> Self {
        let look = match (quiet, terminal.width) {
            (true, _) => Look::Quiet,
            (false, None) => Look::Lines { next: None },
            (false, Some(columns)) => {
                BARS.set_draw_target(ProgressDrawTarget::stderr());
                let all = BARS.add(ProgressBar::new(0).with_style(style()));
                Look::Bars {
                    all,
                    paths: Vec::new(),
                    bar: Bar::for_terminal(columns, terminal.unicode),
                }
            }
        };
        Self {
            look,
            meter: Meter::default(),
        }
    }

    /// Shows the status of all paths that are fetched.
    pub fn update(&mut self, now: Instant, paths: &[PathStatus]) {
        let (fetched, size) = sums(paths);
        self.meter.update(now, fetched);
        match &mut self.look {
            Look::Quiet => {}
            Look::Lines { next } => {
                if next.is_none_or(|next| now >= next) {
                    *next = Some(now + LINE_INTERVAL);
                    eprintln!("narfs: {}", line(paths, &self.meter));
                }
            }
            Look::Bars {
                all,
                paths: bars,
                bar: look,
            } => {
                let active: Vec<_> = paths
                    .iter()
                    .filter(|path| path.state == PathState::Fetching)
                    .take(PATH_BARS)
                    .collect();
                while bars.len() > active.len() {
                    bars.pop().inspect(ProgressBar::finish_and_clear);
                }
                while bars.len() < active.len() {
                    bars.push(BARS.insert_before(all, ProgressBar::new(0).with_style(style())));
                }
                for (bar, path) in bars.iter().zip(active) {
                    let name = path.store_path.rsplit('/').next().unwrap_or_default();
                    let name = name.get(33..).unwrap_or(name);
                    let (fetched, size) = (path.fetched_size, path.size);
                    let text = format!(
                        "{} of {}  {name}",
                        human::bytes(fetched),
                        human::bytes(size)
                    );
                    bar.set_message(look.with(fetched, size, &text));
                }
                all.set_message(look.with(fetched, size, &line(paths, &self.meter)));
            }
        }
    }

    /// Takes the bars away, or writes the last line: the caller says how it ended.
    pub fn finish(self, paths: &[PathStatus]) {
        match self.look {
            Look::Quiet => {}
            Look::Lines { .. } => eprintln!("narfs: {}", line(paths, &self.meter)),
            Look::Bars { all, paths, .. } => {
                paths.iter().for_each(ProgressBar::finish_and_clear);
                all.finish_and_clear();
            }
        }
    }
}

/// A line of text that holds the bar too, cut to the terminal's width by indicatif.
pub(super) fn style() -> ProgressStyle {
    // The template is a constant and right; if it were not, the default bar would do.
    ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(fetched: u64, size: u64) -> PathStatus {
        let state = if fetched == size {
            "complete"
        } else {
            "fetching"
        };
        serde_json::from_value(serde_json::json!({
            "digest": "sha256:0", "size": size, "fetchedSize": fetched, "fetchedPercent": 0.0,
            "storePath": "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-hello", "state": state, "verified": false,
        }))
        .unwrap()
    }

    #[test]
    fn the_rate_does_not_depend_on_how_often_it_is_asked() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut often = Meter::default();
        let mut seldom = Meter::default();
        for step in 0..=100 {
            often.update(at(step * 100), step * 100);
        }
        for step in 0..=10 {
            seldom.update(at(step * 1000), step * 1000);
        }
        assert!((often.rate() - 1000.0).abs() < 1.0 && (seldom.rate() - 1000.0).abs() < 1.0);
        // A stall shows within a few seconds.
        seldom.update(at(20_000), 10_000);
        assert!(seldom.rate() < 50.0, "{}", seldom.rate());
    }

    #[test]
    fn a_burst_at_the_start_is_soon_forgotten() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.update(start, 0);
        meter.update(start + Duration::from_millis(1), 1_000_000);
        meter.update(start + Duration::from_millis(1001), 2_000_000);
        assert!(meter.rate() < 2_100_000.0, "{}", meter.rate());
    }

    #[test]
    fn no_forecast_without_a_rate() {
        let mut meter = Meter::default();
        assert_eq!(meter.time_for(1), None);
        let start = Instant::now();
        meter.update(start, 500);
        meter.update(start + Duration::from_secs(1), 100);
        assert_eq!((meter.rate(), meter.time_for(1)), (0.0, None));
        meter.update(start, 100_000);
    }

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let mut meter = Meter::default();
        let start = Instant::now();
        meter.update(start, 0);
        meter.update(start + Duration::from_secs(1), 1 << 20);
        let paths = [path(1 << 20, 1 << 20), path(1 << 20, 4 << 20)];
        let want = "1 of 2 paths, 2.0 MiB of 5.0 MiB (40%), 1.0 MiB/s, 3.0 s left";
        assert_eq!(line(&paths, &meter), want);
        assert_eq!(
            line(&paths[..1], &meter),
            "1 of 1 path, 1.0 MiB of 1.0 MiB (100%)"
        );
        let stuck = PathStatus {
            error: Some("no route".into()),
            ..path(0, 1 << 20)
        };
        assert_eq!(
            line(&[stuck], &Meter::default()),
            "0 of 1 path, 0 B of 1.0 MiB (0%), 0 B/s, 1 error"
        );
    }

    #[test]
    fn bars_come_and_go_with_what_is_fetched() {
        let terminal = Terminal {
            width: Some(80),
            ..Terminal::NONE
        };
        let mut progress = Progress::new(&terminal, false);
        let bars = |progress: &Progress| match &progress.look {
            Look::Bars { paths, .. } => paths.len(),
            _ => 0,
        };
        let now = Instant::now();
        let many: Vec<_> = (0..20).map(|_| path(1, 2)).collect();
        progress.update(now, &many);
        assert_eq!(bars(&progress), PATH_BARS);
        progress.update(now, &[path(2, 2), path(1, 2)]);
        assert_eq!(bars(&progress), 1);
        progress.finish(&many);
        assert!(matches!(Progress::new(&terminal, true).look, Look::Quiet));
        assert!(matches!(
            Progress::new(&Terminal::NONE, false).look,
            Look::Lines { .. }
        ));
    }
}
