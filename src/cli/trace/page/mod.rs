//! The document as one HTML file that needs no other.
//!
//! ```text
//! html.rs      text that can be written into HTML, whatever it is
//! timeline.rs  the waterfall, as SVG      pack.rs   which bar goes into which row
//! tables.rs    what is read without a picture
//! style.css, script.js   ours, written into the page
//! ```
//!
//! Everything is there without the script, which only zooms, filters and sorts. The page's policy
//! names script and style by their digests, so that nothing else runs in it even if something that a
//! cache named were to get past [`html::escaped`].

mod html;
mod pack;
mod tables;
mod timeline;

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use self::{html::escaped, timeline::Timeline};
use super::document::Document;
use crate::cli::output::human;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page.
pub(super) fn render(document: &Document) -> String {
    let command = document.command.join(" ");
    let command = escaped(&command);
    let mut page = String::new();
    let allowed = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'",
        allowed(STYLE),
        allowed(SCRIPT)
    );
    put(
        &mut page,
        format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>narfs trace: {command}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <h1><code>{command}</code></h1>\n"
        ),
    );
    summary(&mut page, document);
    tables::time(&mut page, document);
    Timeline::of(document).render(&mut page);
    tables::files(&mut page, document);
    tables::store_paths(&mut page, document);
    tables::caches(&mut page, document);
    tables::requests(&mut page, document);
    tables::waits(&mut page, document);
    put(
        &mut page,
        format_args!(
            "<footer>narfs {}, {} {}; began {}</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
            escaped(&document.narfs),
            escaped(&document.format),
            document.version,
            escaped(document.began.as_str())
        ),
    );
    page
}

fn summary(page: &mut String, document: &Document) {
    let totals = &document.totals;
    let ended = match (document.ended.status, document.ended.signal) {
        (_, Some(signal)) => format!("ended by signal {signal}"),
        (status, None) => format!("status {}", status.unwrap_or_default()),
    };
    let start = if document.cold {
        "a cold start"
    } else {
        "with what was here"
    };
    put(
        page,
        format_args!(
            "<p id=\"summary\" data-requests=\"{}\" data-bytes-received=\"{}\" data-bytes-touched=\"{}\" \
             data-bytes-unpacked=\"{}\" data-upcalls=\"{}\">{} from the start to the program's end ({ended}), {start}. \
             {} brought {}, which are {} unpacked; {} of them were touched, in {} of {}. \
             The kernel asked {} times, and waited {} times.</p>\n",
            totals.requests,
            totals.bytes_received,
            totals.bytes_touched,
            totals.bytes_unpacked,
            totals.upcalls,
            millis(document.milliseconds),
            human::count(totals.requests, "request"),
            human::bytes(totals.bytes_received),
            human::bytes(totals.bytes_unpacked),
            human::bytes(totals.bytes_touched),
            human::count(totals.files_touched, "file"),
            human::count(totals.store_paths_touched, "store path"),
            totals.upcalls,
            totals.upcalls_that_waited,
        ),
    );
    let (upcalls, requests) = (totals.upcalls_left_out, totals.requests_left_out);
    if upcalls + requests > 0 {
        put(
            page,
            format_args!(
                "<p class=\"note\">Too much happened to keep all of it: {upcalls} requests of the kernel and \
                 {requests} requests to caches are only counted.</p>\n"
            ),
        );
    }
}

/// A time in milliseconds, as people read it.
fn millis(time: f64) -> String {
    match time {
        ..10.0 => format!("{time:.2} ms"),
        10.0..1000.0 => format!("{time:.0} ms"),
        _ => format!("{:.2} s", time / 1000.0),
    }
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    let _ = page.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::trace::document::{Ended, RequestRow, Totals, UpcallRow, VERSION};

    fn upcall(at: f64, waited: bool) -> UpcallRow {
        UpcallRow {
            at,
            end: at + at % 7.0,
            what: "read".into(),
            pid: 1,
            path: "/nix/store/x/file".into(),
            store_path: Some("x".into()),
            offset: Some(0),
            size: Some(4096),
            waited,
            outcome: "done".into(),
        }
    }

    fn request(at: f64) -> RequestRow {
        RequestRow {
            at,
            answered: Some(at),
            first_byte: Some(at),
            end: at + 1.0,
            kind: "nar".into(),
            cache: "c".into(),
            address: "a".into(),
            range: None,
            store_path: None,
            lanes: Vec::new(),
            status: Some(200),
            bytes: 1,
            outcome: "done".into(),
        }
    }

    #[test]
    fn a_page_of_very_many_events_is_still_a_page() {
        let document = Document {
            format: "narfs-trace".into(),
            version: VERSION,
            narfs: "0".into(),
            command: vec!["x".into()],
            began: std::time::UNIX_EPOCH.into(),
            cold: true,
            milliseconds: 250_000.0,
            ended: Ended {
                status: Some(0),
                signal: None,
            },
            time: Vec::new(),
            totals: Totals::default(),
            counters: Default::default(),
            store_paths: Vec::new(),
            files: Vec::new(),
            requests: (0..50_000).map(|at| request(at.into())).collect(),
            upcalls: (0..200_000)
                .map(|at| upcall(at.into(), at % 4 == 0))
                .collect(),
        };
        let page = render(&document);
        assert!(page.len() < 16 << 20, "{}", page.len());
        // The longest of those that waited, and of the requests in no lane.
        assert_eq!(page.matches("<g class=\"bar ").count(), 2 * 2500);
        assert!(page.contains("data-count=\"50000\" data-left-out=\"47500\""));
        assert!(
            page.contains("data-count=\"150000\""),
            "the density of the rest"
        );
        assert!(page.contains("The first 2000 of 50000"));
    }
}
