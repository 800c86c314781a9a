//! The numbers on a screen.

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table},
};

use super::state::State;
use crate::cli::output::{human, printable};

/// Which list gets the most room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Focus {
    /// Transfers.
    #[default]
    Fetches,
    /// Requests of the kernel that wait.
    Waiting,
    /// The last errors.
    Errors,
}

impl Focus {
    pub fn next(self) -> Self {
        match self {
            Self::Fetches => Self::Waiting,
            Self::Waiting => Self::Errors,
            Self::Errors => Self::Fetches,
        }
    }
}

/// How it is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub color: bool,
    pub unicode: bool,
    /// Whether the last line names the keys.
    pub keys: bool,
    pub focus: Focus,
    /// Lines of that list that are above its first one on the screen.
    pub scroll: usize,
    pub paused: bool,
    /// Seconds between two looks.
    pub interval: f64,
    /// The daemon does not answer any more: what is shown is the last that it said.
    pub stale: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            color: false,
            unicode: true,
            keys: true,
            focus: Focus::default(),
            scroll: 0,
            paused: false,
            interval: 1.0,
            stale: false,
        }
    }
}

impl Look {
    fn colored(&self, color: Color) -> Style {
        match self.color {
            true => Style::new().fg(color),
            false => Style::new(),
        }
    }
}

/// Lines that a list has at least, with its head, where there is room for any.
const LEAST: u16 = 4;
/// Lines above the lists.
const HEAD: u16 = 5;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, look: &Look) {
    let area = frame.area();
    let caches = state.said.inflight.caches.len() as u16 + 1;
    let list = |focus, lines: usize| match focus == look.focus {
        true => Constraint::Fill(1),
        false => Constraint::Length((lines as u16 + 2).min(LEAST)),
    };
    let inflight = &state.said.inflight;
    let [head, above, fetches, waiting, errors, keys] = Layout::vertical([
        Constraint::Length(HEAD),
        Constraint::Length(caches.min(area.height / 3) + 1),
        list(Focus::Fetches, inflight.transfers.len()),
        list(Focus::Waiting, inflight.waiting.len()),
        list(Focus::Errors, inflight.errors.len()),
        Constraint::Length(u16::from(look.keys)),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(totals(state, look)), head);
    frame.render_widget(cache_table(state, look), above);
    lists(frame, state, look, [fetches, waiting, errors]);
    if look.keys {
        frame.render_widget(Paragraph::new(key_line(look)), keys);
    }
}

fn totals<'a>(state: &'a State, look: &Look) -> Vec<Line<'a>> {
    let said = &state.said;
    let (summary, daemon) = (&said.summary, &said.summary.daemon);
    let bytes = |name: &str| said.value(name).map(|n| human::bytes(n as u64));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut first = vec![
        Span::styled("narfs", bold),
        Span::raw(format!(
            " {}  pid {}  up {}  mounts {}",
            daemon.version,
            daemon.pid,
            seconds(said.value("narfs_uptime_seconds").unwrap_or(0.0)),
            said.sum("narfs_mounts", &[]),
        )),
    ];
    if look.stale {
        let alarm = look.colored(Color::Red).add_modifier(Modifier::REVERSED);
        first.push(Span::raw("  "));
        first.push(Span::styled(" it does not answer any more ", alarm));
    } else if look.paused {
        let style = Style::new().add_modifier(Modifier::REVERSED);
        first.push(Span::raw("  "));
        first.push(Span::styled(" paused ", style));
    }
    let hits = match state.hit_percent() {
        Some(percent) => format!("{percent:.1} %"),
        None => "-".into(),
    };
    let kept = bytes("narfs_content_bytes").unwrap_or_else(|| "-".into());
    let quota = bytes("narfs_quota_bytes").map_or(String::new(), |quota| format!(" of {quota}"));
    let counts = &summary.paths;
    vec![
        Line::from(first),
        Line::raw(format!(
            "reads   {hits} were here ({:.0} here, {:.0} fetched just now)   in {}   to readers {}",
            state.reads.0,
            state.reads.1,
            human::rate(state.incoming),
            human::rate(state.outgoing),
        )),
        Line::raw(format!(
            "paths   {}: {} complete, {} fetching, {} partial, {} known, {} quarantined; {} with errors",
            counts.total,
            counts.complete,
            counts.fetching,
            counts.partial,
            counts.known,
            counts.quarantined,
            summary.errors,
        )),
        Line::raw(format!(
            "disk    {kept}{quota}   memory {}   files open {}",
            bytes("process_resident_memory_bytes").unwrap_or_else(|| "-".into()),
            said.sum("process_open_fds", &[]),
        )),
        Line::raw(format!("lanes   {}", lanes(state))),
    ]
}

fn lanes(state: &State) -> String {
    let lane = |name: &str| {
        let these = state.said.inflight.transfers.iter();
        let these: Vec<_> = these.filter(|t| t.lane == name).collect();
        let flowing = these.iter().filter(|t| t.stage == "flowing").count();
        let rate: f64 = these.iter().filter_map(|t| state.rates.get(&t.id)).sum();
        let shown = these.len();
        format!("{name} {shown} ({flowing} flowing, {})", human::rate(rate))
    };
    let all = ["demand", "read-ahead", "background"].map(lane);
    let admissions = state.said.inflight.admissions.len();
    format!("{}   lookups {admissions}", all.join("   "))
}

fn cache_table<'a>(state: &'a State, look: &Look) -> Table<'a> {
    let rows = state.said.inflight.caches.iter().map(|cache| {
        let counts = state.said.summary.substituters.iter();
        let counts = counts.clone().find(|s| s.name == cache.name);
        let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
        let (health, style) = match cache.offline_seconds {
            Some(gone) if !cache.online => {
                (format!("gone {}", seconds(gone)), look.colored(Color::Red))
            }
            _ if !cache.online => ("gone".into(), look.colored(Color::Red)),
            _ => ("online".to_owned(), look.colored(Color::Green)),
        };
        Row::new([
            Cell::new(printable(&cache.name)),
            Cell::new(Span::styled(health, style)),
            Cell::new(number(counts.map(|c| c.requests))),
            Cell::new(counts.map_or_else(|| "-".into(), |c| human::bytes(c.bytes_received))),
            Cell::new(number(counts.map(|c| c.failures))),
            Cell::new(printable(cache.last_error.as_deref().unwrap_or(""))),
        ])
    });
    let widths = [
        Constraint::Fill(2),
        // Of "gone 59 min 59 s".
        Constraint::Length(16),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Fill(2),
    ];
    let names = [
        "CACHE",
        "",
        "REQUESTS",
        "RECEIVED",
        "FAILURES",
        "LAST FAILURE",
    ];
    Table::new(rows, widths).header(header(names, false))
}

fn header<const N: usize>(names: [&str; N], focused: bool) -> Row<'_> {
    let style = match focused {
        true => Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED),
        false => Style::new().add_modifier(Modifier::BOLD),
    };
    Row::new(names).style(style)
}

fn lists(frame: &mut Frame<'_>, state: &State, look: &Look, areas: [Rect; 3]) {
    let inflight = &state.said.inflight;
    let skipped = |focus| match focus == look.focus {
        true => look.scroll,
        false => 0,
    };
    let [fetches, waiting, errors] = areas;
    // The most urgent first; within a lane, the oldest.
    let mut transfers: Vec<_> = inflight.transfers.iter().collect();
    let urgency = |lane: &str| ["demand", "read-ahead"].iter().position(|l| *l == lane);
    transfers.sort_by_key(|t| (urgency(&t.lane).unwrap_or(2), t.id));
    let rows = transfers
        .into_iter()
        .skip(skipped(Focus::Fetches))
        .map(|t| {
            let rate = state.rates.get(&t.id).copied().unwrap_or(0.0);
            let percent = t.wanted.filter(|wanted| *wanted > 0);
            let percent = percent.map(|wanted| (t.bytes as f64 * 100.0 / wanted as f64).min(100.0));
            let bar = percent.map_or_else(String::new, |p| human::bar(p, 10, look.unicode));
            let lane = match t.lane.as_str() {
                "demand" => look.colored(Color::Yellow),
                _ => Style::new(),
            };
            Row::new([
                Cell::new(Span::styled(printable(&t.lane), lane)),
                Cell::new(printable(&t.stage)),
                Cell::new(human::rate(rate)),
                Cell::new(human::bytes(t.bytes)),
                Cell::new(bar),
                Cell::new(seconds(t.seconds)),
                Cell::new(host(t.substituter.as_deref())),
                Cell::new(name(&t.store_path)),
            ])
        });
    let widths = [
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(6),
        Constraint::Fill(1),
        Constraint::Fill(2),
    ];
    let names = [
        "LANE",
        "STAGE",
        "RATE",
        "BYTES",
        "",
        "FOR",
        "CACHE",
        "STORE PATH",
    ];
    let head = header(names, look.keys && look.focus == Focus::Fetches);
    frame.render_widget(Table::new(rows, widths).header(head), fetches);

    let waits = inflight.waiting.iter().skip(skipped(Focus::Waiting));
    let rows = waits.map(|w| {
        let program = w.program.as_deref().unwrap_or("?");
        Row::new([
            Cell::new(printable(&w.what)),
            Cell::new(seconds(w.seconds)),
            Cell::new(printable(&format!("{program} {}", w.pid))),
            Cell::new(name(&w.path)),
        ])
    });
    let widths = [
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(22),
        Constraint::Fill(1),
    ];
    let names = ["WAITS FOR", "FOR", "WHO", "FILE"];
    let head = header(names, look.keys && look.focus == Focus::Waiting);
    frame.render_widget(Table::new(rows, widths).header(head), waiting);

    let failed = inflight.errors.iter().skip(skipped(Focus::Errors));
    let rows = failed.map(|error| {
        Row::new([
            Cell::new(error.at.to_string()),
            Cell::new(printable(&error.message)),
        ])
    });
    let widths = [Constraint::Length(25), Constraint::Fill(1)];
    let head = header(
        ["LAST ERRORS", ""],
        look.keys && look.focus == Focus::Errors,
    );
    frame.render_widget(Table::new(rows, widths).header(head), errors);
}

fn key_line(look: &Look) -> Line<'static> {
    let keys = format!(
        "q end  p {}  + - every {:.1} s  Tab list  j k scroll  r now",
        if look.paused { "go on" } else { "pause" },
        look.interval
    );
    Line::styled(keys, Style::new().add_modifier(Modifier::REVERSED))
}

fn seconds(seconds: f64) -> String {
    human::duration(Duration::from_secs_f64(seconds.max(0.0)))
}

/// A cache's host, which tells more than the first letters of its URL.
fn host(url: Option<&str>) -> String {
    let Some(url) = url else { return "-".into() };
    let host = url::Url::parse(url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned));
    printable(&host.unwrap_or_else(|| url.to_owned()))
}

/// A file in the store without what is the same for all: the directory and the hash.
fn name(path: &str) -> String {
    let inside = path.strip_prefix("/nix/store/").unwrap_or(path);
    let short = match inside.char_indices().nth(32) {
        Some((at, '-')) => &inside[at + 1..],
        _ => inside,
    };
    printable(short)
}

#[cfg(test)]
mod tests {
    use super::{super::as_text, *};
    use crate::cli::top::state::tests::said;

    fn shown(look: &Look, size: (u16, u16)) -> String {
        as_text(&State::of(Some(&said(10.0)), said(12.0)), look, size).unwrap()
    }

    #[test]
    fn everything_has_its_line() {
        let text = shown(&Look::default(), (120, 40));
        for part in [
            "narfs 0.1.0  pid 4711",
            "90.0 % were here",
            "3: 2 complete, 1 fetching",
            "demand 1 (1 flowing",
            "https://cache.example.org/",
            "gone 1 min 15 s",
            "cannot connect: refused",
            "hello-2.12.1",
            "python3 99",
            "no answer before the deadline",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn any_size_will_do() {
        for width in [1, 10, 40, 79, 300] {
            for height in [1, 2, 5, 8, 12, 24, 100] {
                for focus in [Focus::Fetches, Focus::Waiting, Focus::Errors] {
                    let look = Look {
                        focus,
                        scroll: 1000,
                        stale: true,
                        ..Look::default()
                    };
                    shown(&look, (width, height));
                }
            }
        }
    }

    #[test]
    fn names_are_shown_without_what_is_the_same_for_all() {
        let hash = "0".repeat(32);
        assert_eq!(name(&format!("/nix/store/{hash}-a-1/bin/a")), "a-1/bin/a");
        assert_eq!(name("the status of x"), "the status of x");
        assert_eq!(
            host(Some("https://cache.example.org/")),
            "cache.example.org"
        );
        assert_eq!(host(None), "-");
    }
}
