//! The table of `narfs status`.

use std::fmt::Write as _;

use narfs_state_schema::{PathState, PathStatus, Summary};

use super::{Terminal, human, printable};

/// Columns of a bar with those that a name has to be left for it, widest first: a name in few
/// columns tells less than a bar.
const BARS: [(usize, usize); 2] = [(16, 44), (10, 20)];

/// Columns of the widest state, `quarantined`.
const STATE: usize = 11;

/// The table for `paths` and `summary`.
///
/// On a terminal: lines of at most its width, with bars, and the totals below. Elsewhere: for each
/// path a line of state, percent, fetched bytes, bytes in all, store path and error, with tabs
/// between them, and nothing else.
pub fn status(summary: &Summary, paths: &[PathStatus], terminal: &Terminal) -> String {
    match terminal.width {
        Some(width) => for_people(summary, paths, terminal, width),
        None => paths.iter().map(columns).collect(),
    }
}

fn columns(path: &PathStatus) -> String {
    format!(
        "{}\t{:.2}\t{}\t{}\t{}\t{}\n",
        path.state,
        path.fetched_percent,
        path.fetched_size,
        path.size,
        path.store_path,
        path.error.as_deref().map(printable).unwrap_or_default()
    )
}

fn for_people(
    summary: &Summary,
    paths: &[PathStatus],
    terminal: &Terminal,
    width: usize,
) -> String {
    let mut text = String::new();
    let sizes: Vec<String> = paths.iter().map(size).collect();
    let size_width = sizes
        .iter()
        .map(|size| size.chars().count())
        .max()
        .unwrap_or(0);
    // state, bar, percent, sizes, and two spaces after each of them
    let fixed = STATE + 2 + 4 + 2 + size_width + 2;
    let fits = |(bar, name): &&(usize, usize)| width >= fixed + bar + 2 + name;
    let bar_width = BARS.iter().find(fits).map_or(0, |(bar, _)| *bar);
    let bars = if bar_width > 0 { bar_width + 2 } else { 0 };
    let name_width = width.saturating_sub(fixed + bars).max(8);
    for (path, size) in paths.iter().zip(&sizes) {
        let state = format!("{:STATE$}", path.state);
        let state = colour(path.state).map_or(state.clone(), |sgr| terminal.paint(sgr, &state));
        let percent = human::percent(path.fetched_percent);
        text.push_str(&state);
        if bar_width > 0 {
            let _ = write!(
                text,
                "  {}",
                human::bar(path.fetched_percent, bar_width, terminal.unicode)
            );
        }
        let name = shortened(&path.store_path, name_width, terminal.unicode);
        let _ = writeln!(text, "  {percent:>4}  {size:>size_width$}  {name}");
        if let Some(error) = &path.error {
            for line in wrapped(&format!("error: {}", printable(error)), width) {
                let _ = writeln!(text, "{}", terminal.paint(31, &line));
            }
        }
    }
    if !paths.is_empty() {
        text.push('\n');
    }
    totals(summary, terminal, width, &mut text);
    text
}

fn totals(summary: &Summary, terminal: &Terminal, width: usize, text: &mut String) {
    let states: Vec<_> = PathState::ALL
        .into_iter()
        .map(|state| (state, summary.paths.of(state)))
        .filter(|(_, number)| *number > 0)
        .map(|(state, number)| format!("{number} {state}"))
        .collect();
    let mut line = format!(
        "{}, {} of {} here ({})",
        human::count(summary.paths.total, "path"),
        human::bytes(summary.fetched_size),
        human::bytes(summary.size),
        human::percent(summary.fetched_percent)
    );
    if summary.errors > 0 {
        let _ = write!(line, ", {}", human::count(summary.errors, "error"));
    }
    for line in [line, states.join(", ")]
        .iter()
        .filter(|line| !line.is_empty())
    {
        let _ = writeln!(text, "{}", cut(line, width, terminal.unicode));
    }
    for cache in &summary.substituters {
        let mut line = format!(
            "{}: {}, {}",
            printable(&cache.name),
            human::count(cache.requests, "request"),
            human::bytes(cache.bytes_received)
        );
        if cache.failures > 0 {
            let _ = write!(line, ", {}", human::count(cache.failures, "failure"));
        }
        if let Some(error) = &cache.last_error {
            let _ = write!(line, " (last: {})", printable(&error.message));
        }
        let _ = writeln!(text, "{}", cut(&line, width, terminal.unicode));
    }
}

fn size(path: &PathStatus) -> String {
    match path.state {
        PathState::Complete => human::bytes(path.size),
        _ => format!(
            "{} of {}",
            human::bytes(path.fetched_size),
            human::bytes(path.size)
        ),
    }
}

/// SGR: green is done, yellow is on its way, red needs somebody.
fn colour(state: PathState) -> Option<u8> {
    match state {
        PathState::Complete => Some(32),
        PathState::Fetching => Some(33),
        PathState::Quarantined | PathState::Refused => Some(31),
        _ => None,
    }
}

/// `text` in lines of at most `width` columns, broken at spaces where there are any, each two
/// columns in.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "  ";
    let room = width.saturating_sub(INDENT.len()).max(1);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last().map_or(0, |line| line.chars().count());
            let space = usize::from(line > 0);
            if line + space + word.len() <= room {
                break;
            }
            if line > 0 {
                lines.push(String::new());
                continue;
            }
            // A word that is longer than a line.
            let rest = word.split_off(room);
            lines.pop();
            lines.extend([word.into_iter().collect(), String::new()]);
            word = rest;
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
    }
    lines.iter().map(|line| format!("{INDENT}{line}")).collect()
}

/// A store path in `width` columns: first `/nix/store/` goes, then most of the digest, then the
/// end of the name.
fn shortened(store_path: &str, width: usize, unicode: bool) -> String {
    /// Digits that still tell two versions of a package apart.
    const DIGITS: usize = 7;
    let base = store_path.rsplit('/').next().unwrap_or(store_path);
    if store_path.len() <= width {
        return store_path.to_string();
    }
    if base.len() <= width {
        return base.to_string();
    }
    let short = match base.split_at_checked(32) {
        Some((digest, name)) => format!(
            "{}{}{name}",
            digest.get(..DIGITS).unwrap_or(digest),
            mark(unicode)
        ),
        None => base.to_string(),
    };
    cut(&short, width, unicode)
}

/// `text` in at most `width` columns, with a mark if something is missing.
fn cut(text: &str, width: usize, unicode: bool) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    let mark = mark(unicode);
    let keep = width.saturating_sub(mark.chars().count());
    text.chars().take(keep).chain(mark.chars()).collect()
}

fn mark(unicode: bool) -> &'static str {
    if unicode { "…" } else { "..." }
}

#[cfg(test)]
mod tests {
    use narfs_state_schema::{DaemonStatus, StateCounts, SubstituterStatus, Timestamp, percent};

    use super::*;

    fn path(name: &str, state: PathState, fetched: u64, size: u64) -> PathStatus {
        PathStatus {
            digest: format!("sha256:{}", "0".repeat(64)),
            size,
            fetched_size: fetched,
            fetched_percent: percent(fetched, size),
            error: None,
            store_path: format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{name}"),
            state,
            verified: false,
            files: None,
            entries: None,
            substituter: None,
            compression: None,
            first_seen: None,
            last_fetched: None,
            last_error: None,
        }
    }

    fn paths() -> Vec<PathStatus> {
        let bad = PathStatus {
            error: Some("the hash is wrong\n\u{1b}[2J".into()),
            ..path("openssl-3.0.14", PathState::Quarantined, 0, 7 << 20)
        };
        vec![
            path("hello-2.12.1", PathState::Complete, 226_560, 226_560),
            path("python3-3.11.9", PathState::Fetching, 42 << 20, 120 << 20),
            bad,
        ]
    }

    fn summary(paths: &[PathStatus]) -> Summary {
        let mut counts = StateCounts::default();
        paths.iter().for_each(|path| counts.add(path.state));
        let (size, fetched_size) = paths
            .iter()
            .fold((0, 0), |(a, b), p| (a + p.size, b + p.fetched_size));
        Summary {
            paths: counts,
            size,
            fetched_size,
            fetched_percent: percent(fetched_size, size),
            errors: paths.iter().filter(|path| path.error.is_some()).count() as u64,
            substituters: vec![SubstituterStatus {
                name: "https://cache.nixos.org/".into(),
                priority: 40,
                requests: 312,
                bytes_received: 11 << 20,
                failures: 1,
                last_error: None,
            }],
            substituters_omitted: 0,
            daemon: DaemonStatus {
                version: "0.1.0".into(),
                pid: 1,
                started: Timestamp::from_unix_millis(0),
            },
        }
    }

    #[test]
    fn programs_get_columns() {
        let paths = paths();
        let text = status(&summary(&paths), &paths, &Terminal::NONE);
        let first = "complete\t100.00\t226560\t226560\t/nix/store/0123456789abcdfghijklmnpqrsvwxyz-hello-2.12.1\t";
        assert_eq!(text.lines().next(), Some(first));
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("\tthe hash is wrong \u{fffd}[2J\n"));
    }

    #[test]
    fn people_get_a_table() {
        let paths = paths();
        let want = "\
complete     ██████████  100%              221 KiB  0123456…-hello-2.12.1
fetching     ███▌         35%  42.0 MiB of 120 MiB  0123456…-python3-3.11.9
quarantined                0%       0 B of 7.0 MiB  0123456…-openssl-3.0.14
  error: the hash is wrong \u{fffd}[2J

3 paths, 42.2 MiB of 127 MiB here (33%), 1 error
1 fetching, 1 complete, 1 quarantined
https://cache.nixos.org/: 312 requests, 11.0 MiB, 1 failure
";
        let terminal = Terminal {
            width: Some(80),
            ..Terminal::NONE
        };
        assert_eq!(status(&summary(&paths), &paths, &terminal), want);
        let wide = status(
            &summary(&paths),
            &paths,
            &Terminal {
                width: Some(130),
                ..terminal
            },
        );
        assert!(
            wide.starts_with("complete     ████████████████  100%"),
            "{wide}"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let paths = paths();
        for unicode in [true, false] {
            for width in 55..200 {
                let terminal = Terminal {
                    width: Some(width),
                    color: false,
                    unicode,
                };
                let text = status(&summary(&paths), &paths, &terminal);
                for line in text.lines() {
                    assert!(line.chars().count() <= width, "{width}: {line}");
                    assert!(unicode || line.replace('\u{fffd}', "").is_ascii(), "{line}");
                }
            }
        }
    }

    #[test]
    fn a_wide_terminal_shows_whole_paths() {
        let paths = paths();
        let text = status(
            &summary(&paths),
            &paths,
            &Terminal {
                width: Some(160),
                ..Terminal::NONE
            },
        );
        assert!(
            text.contains(" /nix/store/0123456789abcdfghijklmnpqrsvwxyz-hello-2.12.1\n"),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_a_line_too() {
        let text = status(
            &summary(&[]),
            &[],
            &Terminal {
                width: Some(80),
                ..Terminal::NONE
            },
        );
        assert!(
            text.starts_with("0 paths, 0 B of 0 B here (100%)\n"),
            "{text}"
        );
    }

    #[test]
    fn errors_are_shown_whole() {
        let error = format!("no cache has it {} and {}", "x".repeat(130), "y".repeat(20));
        for width in [3, 20, 80, 300] {
            let lines = wrapped(&error, width);
            assert!(
                lines
                    .iter()
                    .all(|line| line.chars().count() <= width.max(3)),
                "{lines:?}"
            );
            let letters = |text: &str| text.replace(' ', "");
            assert_eq!(letters(&lines.concat()), letters(&error));
        }
        assert_eq!(wrapped("a bc def", 6), ["  a bc", "  def"]);
    }
}
