//! The waterfall: what the kernel asked, and the requests to caches lane by lane, over one time.
//!
//! Everything is placed in hundredths of the picture's width, so that to zoom is to make the picture
//! wider. Bars have their texts as titles, which browsers show without any script.

use super::{
    super::document::{Document, RequestRow, UpcallRow},
    html::escaped,
    millis, pack, put,
};
use crate::cli::output::human;

/// Bars that one lane shows; of more, the longest.
const MOST_BARS: usize = 2500;
/// Rows of one lane.
const MOST_ROWS: usize = 48;
/// Height of a row, in pixels.
const ROW: usize = 11;
/// Height of a picture of density, in pixels.
const DENSITY: usize = 36;
/// Columns of such a picture.
const COLUMNS: usize = 400;
/// Columns of the axis, at most.
const TICKS: f64 = 10.0;
/// The lanes, and what they are for; requests of none are those that a daemon makes for itself.
const LANES: [(&str, &str); 4] = [
    ("demand", "requests to caches that somebody waits for"),
    (
        "read-ahead",
        "requests for what a program that starts will load",
    ),
    ("background", "requests for the rest"),
    ("none", "requests in no lane"),
];

pub(super) struct Timeline<'a> {
    document: &'a Document,
    /// The last moment of all, in milliseconds.
    end: f64,
}

struct Bar<'a> {
    kind: &'a str,
    store_path: &'a str,
    from: f64,
    /// Where the light part ends: the first byte came.
    first: Option<f64>,
    to: f64,
    title: String,
}

impl<'a> Timeline<'a> {
    pub fn of(document: &'a Document) -> Self {
        let requests = document.requests.iter().map(|request| request.end);
        let upcalls = document.upcalls.iter().map(|upcall| upcall.end);
        let end = requests
            .chain(upcalls)
            .fold(document.milliseconds, f64::max);
        Self {
            document,
            end: end.max(0.001),
        }
    }

    fn percent(&self, at: f64) -> f64 {
        at / self.end * 100.0
    }

    pub fn render(&self, page: &mut String) {
        page.push_str(
            "<section id=\"timeline\">\n<h2>Time line</h2>\n\
             <p class=\"tools\"><button id=\"in\">zoom in</button> <button id=\"out\">zoom out</button> \
             <button id=\"fit\">fit</button> <label>only <input id=\"filter\" type=\"search\" \
             placeholder=\"part of a store path\" size=\"40\"></label> <span id=\"hover\"></span></p>\n\
             <p class=\"legend\"><span class=\"narinfo\">narinfo</span> <span class=\"listing\">listing</span> \
             <span class=\"nar\">NAR</span> <span class=\"range\">range of a NAR</span> \
             <span class=\"index\">chunk index</span> <span class=\"lookup\">lookup and the like, waiting</span> \
             <span class=\"read\">read, waiting</span>; light until the first byte</p>\n<div id=\"scroll\"><div id=\"wide\">\n",
        );
        self.axis(page);
        let at_once = |what: fn(&str) -> bool| -> Vec<f64> {
            let all = self.document.upcalls.iter();
            all.filter(|u| !u.waited && what(&u.what))
                .map(|u| u.at)
                .collect()
        };
        self.density(
            page,
            "lookup",
            "names that the kernel asked for, answered at once",
            &at_once(|w| w != "read"),
        );
        self.density(
            page,
            "read",
            "reads answered at once",
            &at_once(|w| w == "read"),
        );
        let waits: Vec<_> = self
            .document
            .upcalls
            .iter()
            .filter(|u| u.waited)
            .map(wait)
            .collect();
        self.lane(page, "waits", "requests of the kernel that waited", waits);
        for (lane, explained) in LANES {
            let requests = self.document.requests.iter();
            let bars: Vec<_> = requests
                .filter(|r| most_urgent(r) == lane)
                .map(request)
                .collect();
            if !bars.is_empty() || lane == "demand" {
                self.lane(page, lane, explained, bars);
            }
        }
        page.push_str("</div></div>\n</section>\n");
    }

    fn axis(&self, page: &mut String) {
        page.push_str(
            "<svg class=\"axis\" width=\"100%\" height=\"18\" role=\"img\" aria-label=\"time\">",
        );
        let step = step(self.end / TICKS);
        let mut at = 0.0;
        while at <= self.end {
            let x = self.percent(at);
            put(
                page,
                format_args!("<line x1=\"{x:.3}%\" x2=\"{x:.3}%\" y1=\"0\" y2=\"18\"/>"),
            );
            put(
                page,
                format_args!(
                    "<text x=\"{x:.3}%\" dx=\"3\" y=\"13\">{}</text>",
                    millis(at)
                ),
            );
            at += step;
        }
        let x = self.percent(self.document.milliseconds);
        put(
            page,
            format_args!(
                "<line class=\"end\" x1=\"{x:.3}%\" x2=\"{x:.3}%\" y1=\"0\" y2=\"18\"><title>the program ended</title></line></svg>\n"
            ),
        );
    }

    /// How many there were at each time: one bar for many.
    fn density(&self, page: &mut String, kind: &str, explained: &str, times: &[f64]) {
        let mut columns = [0usize; COLUMNS];
        for at in times {
            let column = (at / self.end * COLUMNS as f64) as usize;
            columns[column.min(COLUMNS - 1)] += 1;
        }
        let most = columns.iter().copied().max().unwrap_or(0).max(1);
        put(
            page,
            format_args!(
                "<h3>{explained}: {}</h3>\n<svg class=\"density {kind}\" width=\"100%\" height=\"{DENSITY}\" data-count=\"{}\">",
                times.len(),
                times.len()
            ),
        );
        for (column, count) in columns.iter().enumerate().filter(|(_, count)| **count > 0) {
            // Rare ones are seen, too.
            let height = (*count as f64 / most as f64).sqrt() * DENSITY as f64;
            put(
                page,
                format_args!(
                    "<rect x=\"{:.3}%\" y=\"{:.1}\" width=\"{:.3}%\" height=\"{height:.1}\"><title>{count} from {}</title></rect>",
                    column as f64 / COLUMNS as f64 * 100.0,
                    DENSITY as f64 - height,
                    100.0 / COLUMNS as f64,
                    millis(column as f64 / COLUMNS as f64 * self.end)
                ),
            );
        }
        page.push_str("</svg>\n");
    }

    fn lane(&self, page: &mut String, name: &str, explained: &str, mut bars: Vec<Bar<'_>>) {
        let all = bars.len();
        if all > MOST_BARS {
            bars.sort_by(|a, b| (b.to - b.from).total_cmp(&(a.to - a.from)));
            bars.truncate(MOST_BARS);
        }
        bars.sort_by(|a, b| a.from.total_cmp(&b.from));
        let spans: Vec<_> = bars.iter().map(|bar| (bar.from, bar.to)).collect();
        let (rows, count) = pack::rows(&spans, self.end / 1000.0, MOST_ROWS);
        let height = count.max(1) * ROW;
        let left_out = all - bars.len();
        let note = match left_out {
            0 => String::new(),
            _ => format!(", of which the {MOST_BARS} longest are drawn"),
        };
        put(
            page,
            format_args!(
                "<h3>{name}: {all} {explained}{note}</h3>\n<svg class=\"lane\" id=\"lane-{name}\" width=\"100%\" \
                 height=\"{height}\" data-count=\"{all}\" data-left-out=\"{left_out}\">\n"
            ),
        );
        for (bar, row) in bars.iter().zip(rows) {
            self.bar(page, bar, row * ROW);
        }
        page.push_str("</svg>\n");
    }

    fn bar(&self, page: &mut String, bar: &Bar<'_>, y: usize) {
        let (from, to) = (self.percent(bar.from), self.percent(bar.to));
        let first = self.percent(bar.first.unwrap_or(bar.to).clamp(bar.from, bar.to));
        let height = ROW - 2;
        put(
            page,
            format_args!(
                "<g class=\"bar {}\" data-path=\"{}\"><title>{}</title>\
                 <rect class=\"wait\" x=\"{from:.3}%\" y=\"{y}\" width=\"{:.3}%\" height=\"{height}\"/>",
                bar.kind,
                escaped(bar.store_path),
                escaped(&bar.title),
                first - from
            ),
        );
        if bar.first.is_some() {
            put(
                page,
                format_args!(
                    "<rect x=\"{first:.3}%\" y=\"{y}\" width=\"{:.3}%\" height=\"{height}\"/>",
                    to - first
                ),
            );
        }
        page.push_str("</g>\n");
    }
}

/// A round number that is not less.
fn step(least: f64) -> f64 {
    let unit = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps
        .into_iter()
        .map(|s| s * unit)
        .find(|step| *step >= least)
        .unwrap_or(least)
}

fn most_urgent(request: &RequestRow) -> &'static str {
    let had = |lane: &str| request.lanes.iter().any(|row| row.lane == lane);
    LANES
        .iter()
        .map(|(lane, _)| *lane)
        .find(|lane| had(lane))
        .unwrap_or("none")
}

fn request(request: &RequestRow) -> Bar<'_> {
    let kind = request.kind.as_str();
    let what = request.store_path.as_deref().unwrap_or(&request.address);
    let range = request
        .range
        .as_deref()
        .map(|range| format!(", {range}"))
        .unwrap_or_default();
    let first = match request.first_byte {
        Some(first) => format!(", first byte after {}", millis(first - request.at)),
        None => String::new(),
    };
    let lanes: Vec<_> = request
        .lanes
        .iter()
        .map(|row| format!("{} from {}", row.lane, millis(row.at)))
        .collect();
    let title = format!(
        "{kind} of {what}{range}\nfrom {} for {}{first}\n{}, {}; {}\n{}",
        millis(request.at),
        millis(request.end - request.at),
        human::bytes(request.bytes),
        request.outcome,
        lanes.join(", "),
        request.address
    );
    Bar {
        kind,
        store_path: request.store_path.as_deref().unwrap_or(""),
        from: request.at,
        first: request.first_byte,
        to: request.end,
        title,
    }
}

fn wait(upcall: &UpcallRow) -> Bar<'_> {
    let range = match (upcall.offset, upcall.size) {
        (Some(offset), Some(size)) => format!(", {} at {offset}", human::bytes(size.into())),
        _ => String::new(),
    };
    let title = format!(
        "{} {}{range}\nfrom {} for {}, {}; thread {}",
        upcall.what,
        upcall.path,
        millis(upcall.at),
        millis(upcall.end - upcall.at),
        upcall.outcome,
        upcall.pid
    );
    Bar {
        kind: if upcall.what == "read" {
            "read"
        } else {
            "lookup"
        },
        store_path: upcall.store_path.as_deref().unwrap_or(""),
        from: upcall.at,
        first: Some(upcall.at),
        to: upcall.end,
        title,
    }
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn the_axis_has_round_numbers() {
        let rounds = [0.0013, 0.7, 1.0, 31.0, 230.0, 51_000.0].map(step);
        let want = [0.002, 1.0, 1.0, 50.0, 500.0, 100_000.0];
        for (have, want) in rounds.into_iter().zip(want) {
            assert!((have / want - 1.0).abs() < 1e-9, "{have} {want}");
        }
    }
}
