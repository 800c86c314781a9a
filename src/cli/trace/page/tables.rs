//! What the page says in words and numbers.

use super::{
    super::{document::Document, time::Spent},
    html::escaped,
    millis, put,
};
use crate::cli::output::human;

/// Rows of a table; the document has them all.
const MOST_ROWS: usize = 2000;

/// Begins a table, of so many rows.
fn table(page: &mut String, id: &str, title: &str, columns: &[&str], rows: usize, open: bool) {
    let open = if open { " open" } else { "" };
    put(
        page,
        format_args!("<details{open} id=\"{id}\"><summary>{title}</summary>\n"),
    );
    if rows > MOST_ROWS {
        put(
            page,
            format_args!(
                "<p class=\"note\">The first {MOST_ROWS} of {rows}; --json has all of them.</p>\n"
            ),
        );
    }
    put(
        page,
        format_args!("<table data-rows=\"{rows}\"><thead><tr>"),
    );
    for column in columns {
        put(page, format_args!("<th>{column}</th>"));
    }
    page.push_str("</tr></thead><tbody>\n");
}

fn end(page: &mut String) {
    page.push_str("</tbody></table></details>\n");
}

/// A cell with a number of bytes, and the number to sort by.
fn size(bytes: u64) -> String {
    format!(
        "<td class=\"n\" data-n=\"{bytes}\">{}</td>",
        human::bytes(bytes)
    )
}

fn time_cell(time: f64) -> String {
    format!("<td class=\"n\" data-n=\"{time:.3}\">{}</td>", millis(time))
}

/// A cell with a part of a whole, drawn.
fn part(of: u64, whole: u64) -> String {
    let percent = if whole == 0 {
        0.0
    } else {
        of as f64 * 100.0 / whole as f64
    };
    let width = percent.min(100.0);
    format!(
        "<td class=\"n\" data-n=\"{percent:.2}\"><svg class=\"part\" width=\"60\" height=\"9\"><rect class=\"all\" \
         width=\"100%\" height=\"9\"/><rect width=\"{width:.1}%\" height=\"9\"/></svg> {percent:.0}%</td>"
    )
}

/// Where the time went.
pub(super) fn time(page: &mut String, document: &Document) {
    let whole = document.milliseconds.max(0.001);
    page.push_str("<section id=\"time\">\n<h2>Where the time went</h2>\n<svg class=\"shares\" width=\"100%\" height=\"22\">");
    let mut x = 0.0;
    for share in &document.time {
        let width = share.milliseconds / whole * 100.0;
        put(
            page,
            format_args!(
                "<rect class=\"{}\" x=\"{x:.3}%\" width=\"{width:.3}%\" height=\"22\"><title>{}: {}</title></rect>",
                escaped(&share.what),
                escaped(&share.what),
                millis(share.milliseconds)
            ),
        );
        x += width;
    }
    page.push_str("</svg>\n<table><tbody>\n");
    for (share, spent) in document.time.iter().zip(Spent::ALL) {
        put(
            page,
            format_args!(
                "<tr data-what=\"{0}\" data-ms=\"{1}\"><td><span class=\"{0}\">{0}</span></td><td class=\"n\">{2}</td>\
                 <td class=\"n\">{3:.0}%</td><td>{4}</td></tr>\n",
                escaped(&share.what),
                share.milliseconds,
                millis(share.milliseconds),
                share.milliseconds / whole * 100.0,
                spent.explained()
            ),
        );
    }
    page.push_str("</tbody></table>\n</section>\n");
}

/// Bytes touched of bytes fetched, file by file.
pub(super) fn files(page: &mut String, document: &Document) {
    let columns = [
        "store path",
        "file",
        "size",
        "touched",
        "fetched",
        "touched of fetched",
        "reads",
        "waited",
    ];
    let mut rows: Vec<_> = document.files.iter().collect();
    rows.sort_by_key(|row| (row.reads == 0, std::cmp::Reverse(row.fetched)));
    table(page, "files", "Files", &columns, rows.len(), true);
    for row in rows.iter().take(MOST_ROWS) {
        put(
            page,
            format_args!(
                "<tr data-path=\"{0}\"><td>{0}</td><td>{1}</td>{2}{3}{4}{5}<td class=\"n\">{6}</td>{7}</tr>\n",
                escaped(&row.store_path),
                escaped(&row.file),
                size(row.size),
                size(row.touched),
                size(row.fetched),
                part(row.touched, row.fetched),
                row.reads,
                time_cell(row.waited_milliseconds)
            ),
        );
    }
    end(page);
    if document.totals.files_left_out > 0 {
        put(
            page,
            format_args!(
                "<p class=\"note\">{} more, of which less came and nothing was touched.</p>\n",
                human::count(document.totals.files_left_out, "file")
            ),
        );
    }
}

/// The same by store path.
pub(super) fn store_paths(page: &mut String, document: &Document) {
    let columns = [
        "store path",
        "requests",
        "received",
        "unpacked",
        "of its NAR",
        "touched",
        "of unpacked",
        "files touched",
        "waited",
    ];
    let rows = &document.store_paths;
    table(page, "paths", "Store paths", &columns, rows.len(), true);
    for row in rows.iter().take(MOST_ROWS) {
        put(
            page,
            format_args!(
                "<tr data-path=\"{0}\"><td>{0}</td><td class=\"n\">{1}</td>{2}{3}{4}{5}{6}<td class=\"n\">{7}</td>{8}</tr>\n",
                escaped(&row.store_path),
                row.requests,
                size(row.bytes_received),
                size(row.bytes_unpacked),
                part(row.bytes_unpacked, row.nar_size),
                size(row.bytes_touched),
                part(row.bytes_touched, row.bytes_unpacked),
                row.files_touched,
                time_cell(row.waited_milliseconds)
            ),
        );
    }
    end(page);
}

/// What each cache cost.
pub(super) fn caches(page: &mut String, document: &Document) {
    let rows = &document.counters.caches;
    table(
        page,
        "caches",
        "Caches",
        &["cache", "requests", "received"],
        rows.len(),
        true,
    );
    for row in rows.iter().take(MOST_ROWS) {
        put(
            page,
            format_args!(
                "<tr><td>{}</td><td class=\"n\">{}</td>{}</tr>\n",
                escaped(&row.name),
                row.requests,
                size(row.bytes_received)
            ),
        );
    }
    end(page);
}

/// Every request.
pub(super) fn requests(page: &mut String, document: &Document) {
    let columns = [
        "at",
        "kind",
        "lane",
        "store path",
        "range",
        "first byte after",
        "took",
        "received",
        "status",
        "outcome",
        "address",
    ];
    let rows = &document.requests;
    table(
        page,
        "requests",
        "Requests to caches",
        &columns,
        rows.len(),
        false,
    );
    for row in rows.iter().take(MOST_ROWS) {
        let lanes: Vec<_> = row.lanes.iter().map(|lane| lane.lane.as_str()).collect();
        let store_path = row.store_path.as_deref().unwrap_or("");
        let first = row
            .first_byte
            .map_or("<td></td>".into(), |first| time_cell(first - row.at));
        let status = row
            .status
            .map(|status| status.to_string())
            .unwrap_or_default();
        put(
            page,
            format_args!(
                "<tr data-path=\"{0}\">{1}<td>{2}</td><td>{3}</td><td>{0}</td><td>{4}</td>{first}{5}{6}<td>{status}</td><td>{7}</td><td>{8}</td></tr>\n",
                escaped(store_path),
                time_cell(row.at),
                escaped(&row.kind),
                escaped(&lanes.join(", then ")),
                escaped(row.range.as_deref().unwrap_or("")),
                time_cell(row.end - row.at),
                size(row.bytes),
                escaped(&row.outcome),
                escaped(&row.address)
            ),
        );
    }
    end(page);
}

/// What waited, the longest first.
pub(super) fn waits(page: &mut String, document: &Document) {
    let columns = [
        "waited", "at", "what", "path", "offset", "size", "thread", "outcome",
    ];
    let mut rows: Vec<_> = document.upcalls.iter().filter(|u| u.waited).collect();
    rows.sort_by(|a, b| (b.end - b.at).total_cmp(&(a.end - a.at)));
    table(
        page,
        "waits",
        "Requests of the kernel that waited",
        &columns,
        rows.len(),
        false,
    );
    for row in rows.iter().take(MOST_ROWS) {
        let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        put(
            page,
            format_args!(
                "<tr data-path=\"{}\">{}{}<td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>\n",
                escaped(row.store_path.as_deref().unwrap_or("")),
                time_cell(row.end - row.at),
                time_cell(row.at),
                escaped(&row.what),
                escaped(&row.path),
                number(row.offset),
                number(row.size.map(u64::from)),
                row.pid,
                escaped(&row.outcome)
            ),
        );
    }
    end(page);
}
