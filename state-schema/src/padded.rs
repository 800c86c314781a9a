//! Documents of a fixed size.
//!
//! The mount opens no files (`FUSE_NO_OPEN`), so a document's content cannot be fixed at `open`.
//! Instead its size never changes and one READ carries it whole: the JSON text is padded with
//! white space, and what people wrote (messages) is cut where it would not fit.

use serde::Serialize;

use crate::{LastError, PathStatus, Summary};

/// What marks a text that was cut.
const ELLIPSIS: char = '…';

/// A document that can be made shorter without losing what programs rely on.
pub trait Document: Serialize + Clone {
    /// Its texts of unbounded length, the most dispensable first.
    fn texts(&mut self) -> Vec<&mut String>;

    /// Leaves out one of its list items; false when there is none left.
    fn omit_one(&mut self) -> bool;
}

impl Document for PathStatus {
    fn texts(&mut self) -> Vec<&mut String> {
        let mut texts = Vec::new();
        if let Some(last) = &mut self.last_error {
            texts.extend(error_texts(last));
        }
        texts.extend(&mut self.error);
        texts.extend(&mut self.substituter);
        texts
    }

    fn omit_one(&mut self) -> bool {
        false
    }
}

impl Document for Summary {
    fn texts(&mut self) -> Vec<&mut String> {
        self.substituters
            .iter_mut()
            .filter_map(|s| s.last_error.as_mut())
            .flat_map(error_texts)
            .collect()
    }

    fn omit_one(&mut self) -> bool {
        let omitted = self.substituters.pop().is_some();
        self.substituters_omitted += u64::from(omitted);
        omitted
    }
}

fn error_texts(error: &mut LastError) -> impl Iterator<Item = &mut String> {
    std::iter::once(&mut error.message).chain(&mut error.substituter)
}

/// `doc` as JSON, followed by spaces and a newline, `size` bytes in all.
///
/// What would not fit is cut, messages first, with an ellipsis as the mark; then items of lists
/// go, counted in the document. The rest of a document needs less than 2 KiB: a `size` too small
/// even for that gives the next multiple of it. The result is always valid JSON.
pub fn render_padded<D: Document>(doc: &D, size: usize) -> Vec<u8> {
    let mut doc = doc.clone();
    let mut text = render(&doc);
    let mut next = 0;
    while text.len() >= size {
        let excess = text.len() + 1 - size;
        let mut texts = doc.texts();
        if let Some(longest) = texts.get_mut(next) {
            // A character of JSON text is at most six bytes (\u001f), so this may cut too
            // little and comes round again, but never cuts what it need not.
            if !shorten(longest, excess) {
                next += 1;
            }
        } else if !doc.omit_one() {
            break;
        }
        text = render(&doc);
    }
    let total = (text.len() + 1).div_ceil(size.max(1)) * size.max(1);
    text.resize(total - 1, b' ');
    text.push(b'\n');
    text
}

fn render<D: Serialize>(doc: &D) -> Vec<u8> {
    // Maps with string keys, numbers and strings: writing them to memory cannot fail. A
    // non-finite float would become null, and `percent` gives none.
    serde_json::to_vec_pretty(doc).unwrap_or_else(|_| b"{}".to_vec())
}

/// Cuts about `excess` bytes of JSON text off the end of `text`; false when nothing is left to
/// cut.
fn shorten(text: &mut String, excess: usize) -> bool {
    let body = text.strip_suffix(ELLIPSIS).unwrap_or(text);
    if body.is_empty() {
        return false;
    }
    let mark = if body.len() == text.len() {
        ELLIPSIS.len_utf8()
    } else {
        0
    };
    let mut keep = body.len();
    let mut gone = 0;
    for (at, c) in body.char_indices().rev() {
        if gone >= excess + mark {
            break;
        }
        keep = at;
        gone += json_len(c);
    }
    text.truncate(keep);
    text.push(ELLIPSIS);
    true
}

/// Bytes that `serde_json` writes for a character inside a string.
fn json_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{DaemonStatus, PathState, StateCounts, SubstituterStatus, Timestamp, percent};

    pub(crate) fn path_status() -> PathStatus {
        PathStatus {
            digest: format!("sha256:{}", "0".repeat(64)),
            size: 1000,
            fetched_size: 250,
            fetched_percent: percent(250, 1000),
            error: None,
            store_path: format!("/nix/store/{}-hello-2.12.1", "0".repeat(32)),
            state: PathState::Partial,
            verified: false,
            files: Some(3),
            entries: Some(7),
            substituter: Some("https://cache.nixos.org/".into()),
            compression: Some("zstd".into()),
            first_seen: Some(Timestamp::from_unix_millis(0)),
            last_fetched: None,
            last_error: None,
        }
    }

    fn error(message: &str) -> LastError {
        LastError {
            message: message.into(),
            at: Timestamp::from_unix_millis(0),
            substituter: None,
        }
    }

    fn summary(substituters: usize) -> Summary {
        Summary {
            paths: StateCounts::default(),
            size: 0,
            fetched_size: 0,
            fetched_percent: 100.0,
            errors: 0,
            substituters: (0..substituters)
                .map(|i| SubstituterStatus {
                    name: format!("https://cache-{i}.example.org/"),
                    priority: 40,
                    requests: 1,
                    bytes_received: 2,
                    failures: 3,
                    last_error: Some(error("connection refused")),
                })
                .collect(),
            substituters_omitted: 0,
            daemon: DaemonStatus {
                version: "0.1.0".into(),
                pid: 1,
                started: Timestamp::from_unix_millis(0),
            },
        }
    }

    #[test]
    fn fills_the_size_and_changes_nothing_that_fits() {
        let status = path_status();
        let bytes = render_padded(&status, 4096);
        assert_eq!(bytes.len(), 4096);
        assert!(bytes.ends_with(b"} \n") || bytes.ends_with(b"  \n"));
        assert_eq!(
            serde_json::from_slice::<PathStatus>(&bytes).unwrap(),
            status
        );
    }

    #[test]
    fn cuts_messages_at_every_size_and_stays_json() {
        let long = "π \"quoted\" \u{1} ".repeat(400);
        let status = PathStatus {
            error: Some(long.clone()),
            last_error: Some(error(&long)),
            ..path_status()
        };
        for size in (900..1400).step_by(7) {
            let bytes = render_padded(&status, size);
            assert_eq!(bytes.len(), size);
            let read: PathStatus = serde_json::from_slice(&bytes).unwrap();
            let (kept, last) = (read.error.unwrap(), read.last_error.unwrap().message);
            assert!(last.ends_with('…') && kept.ends_with('…'));
            assert!(long.starts_with(kept.trim_end_matches('…')));
            assert_eq!(read.digest, status.digest);
        }
    }

    #[test]
    fn cuts_no_more_than_it_has_to() {
        let status = PathStatus {
            error: Some("e".repeat(5000)),
            ..path_status()
        };
        let bytes = render_padded(&status, 4096);
        assert_eq!(bytes.len(), 4096);
        assert!(bytes.ends_with(b"}\n"), "room was left");
    }

    #[test]
    fn a_long_list_is_counted_and_not_torn() {
        let bytes = render_padded(&summary(200), 4096);
        assert_eq!(bytes.len(), 4096);
        let read: Summary = serde_json::from_slice(&bytes).unwrap();
        assert!(!read.substituters.is_empty());
        assert_eq!(
            read.substituters.len() as u64 + read.substituters_omitted,
            200
        );
    }

    #[test]
    fn a_size_too_small_gives_a_multiple() {
        let bytes = render_padded(&path_status(), 64);
        assert_eq!(bytes.len() % 64, 0);
        serde_json::from_slice::<PathStatus>(&bytes).unwrap();
        assert!(!render_padded(&summary(1), 0).is_empty());
    }
}
