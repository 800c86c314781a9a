//! Byte ranges: what is asked for, what an answer says it is. Pure.

use std::ops::Range;

/// What part of a file a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes; an end of `u64::MAX` means up to the end of the file.
    Part(Range<u64>),
    /// This many from the end.
    Tail(u64),
}

impl Wanted {
    /// The value of the `Range` header, if one is needed.
    pub(super) fn header(&self) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Part(range) if range.end == u64::MAX => Some(format!("bytes={}-", range.start)),
            Self::Part(range) => Some(format!("bytes={}-{}", range.start, range.end - 1)),
            Self::Tail(n) => Some(format!("bytes=-{n}")),
        }
    }

    /// What this is in a file of `total` bytes; `None` if it begins at or behind the end.
    pub(super) fn within(&self, total: u64) -> Option<Range<u64>> {
        match self {
            Self::Whole => Some(0..total),
            Self::Part(range) if range.start < total => Some(range.start..range.end.min(total)),
            Self::Part(_) => None,
            Self::Tail(n) => Some(total.saturating_sub(*n)..total),
        }
    }
}

/// A `Content-Range` of a 206 answer: the bytes that come, and the file's size if it is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// Bytes of the file.
    pub(super) bytes: Range<u64>,
    /// The file's size.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// Reads `bytes 5-9/100` or `bytes 5-9/*` (RFC 9110, 14.4).
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (span, total) = units(value)?.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = match total {
            "*" => None,
            digits => Some(number(digits)?),
        };
        let end = last.checked_add(1)?;
        (first <= last && total.is_none_or(|total| end <= total)).then_some(Self {
            bytes: first..end,
            total,
        })
    }

    /// Whether this answers what was asked for: the same first byte, and the same last one unless
    /// the file ends before it.
    pub(super) fn answers(&self, wanted: &Wanted) -> bool {
        match (wanted, self.total) {
            (Wanted::Whole, Some(total)) => self.bytes == (0..total),
            (Wanted::Whole, None) => false,
            (_, Some(total)) => wanted.within(total).as_ref() == Some(&self.bytes),
            (Wanted::Part(range), None) => {
                self.bytes.start == range.start && range.end == self.bytes.end
            }
            (Wanted::Tail(_), None) => false,
        }
    }
}

/// Reads `bytes */100`, which comes with 416: the file's size.
pub(super) fn unsatisfied_total(value: &str) -> Option<u64> {
    number(units(value)?.strip_prefix("*/")?)
}

fn units(value: &str) -> Option<&str> {
    let (unit, rest) = value.trim().split_once(' ')?;
    unit.eq_ignore_ascii_case("bytes").then_some(rest.trim())
}

/// Digits only: `str::parse` would take a plus sign.
fn number(digits: &str) -> Option<u64> {
    digits
        .bytes()
        .all(|c| c.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks() {
        assert_eq!(Wanted::Whole.header(), None);
        assert_eq!(Wanted::Part(5..10).header().as_deref(), Some("bytes=5-9"));
        assert_eq!(
            Wanted::Part(5..u64::MAX).header().as_deref(),
            Some("bytes=5-")
        );
        assert_eq!(Wanted::Tail(12).header().as_deref(), Some("bytes=-12"));
    }

    #[test]
    fn reads_content_range() {
        let range = |text| ContentRange::parse(text).map(|r| (r.bytes, r.total));
        assert_eq!(range("bytes 5-9/100"), Some((5..10, Some(100))));
        assert_eq!(range("Bytes 5-9/*"), Some((5..10, None)));
        for bad in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes 9-5/100",
            "bytes 5-100/100",
            "bytes -5/100",
            "bytes +5-9/100",
            "lines 5-9/100",
            "bytes */100",
            "bytes 5-18446744073709551615/*",
        ] {
            assert_eq!(range(bad), None, "{bad:?}");
        }
        assert_eq!(unsatisfied_total("bytes */100"), Some(100));
        assert_eq!(unsatisfied_total("bytes 5-9/100"), None);
    }

    #[test]
    fn only_the_wanted_range_will_do() {
        let answers =
            |text: &str, wanted: Wanted| ContentRange::parse(text).unwrap().answers(&wanted);
        assert!(answers("bytes 5-9/100", Wanted::Part(5..10)));
        assert!(answers("bytes 5-9/*", Wanted::Part(5..10)));
        assert!(answers("bytes 5-99/100", Wanted::Part(5..200)));
        assert!(answers("bytes 5-99/100", Wanted::Part(5..u64::MAX)));
        assert!(answers("bytes 90-99/100", Wanted::Tail(10)));
        assert!(answers("bytes 0-99/100", Wanted::Tail(500)));
        assert!(!answers("bytes 4-9/100", Wanted::Part(5..10)));
        assert!(!answers("bytes 5-8/100", Wanted::Part(5..10)));
        assert!(!answers("bytes 5-10/100", Wanted::Part(5..10)));
        assert!(!answers("bytes 5-8/*", Wanted::Part(5..10)));
        assert!(!answers("bytes 89-99/100", Wanted::Tail(10)));
        assert!(!answers("bytes 90-99/*", Wanted::Tail(10)));
    }
}
