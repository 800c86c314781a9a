//! Durations and sizes as people write them: `30s`, `10GiB`.

use std::time::Duration;

/// Units of time with their length in milliseconds, longest first.
const TIMES: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Units of size with their length in bytes; the binary ones are what sizes are written in.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("B", 1),
];

/// Reads `30s`, `500ms`, `2m`, `1h`, `30d`, or a plain number of seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let millis = match unit {
        "" | "sec" => 1000,
        "min" => 60_000,
        unit => TIMES.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// `duration` in the largest unit that holds it exactly, to the millisecond.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".into();
    }
    TIMES
        .iter()
        .find(|(_, length)| millis.is_multiple_of(u128::from(*length)))
        .map_or_else(
            || format!("{millis}ms"),
            |(unit, length)| format!("{}{unit}", millis / u128::from(*length)),
        )
}

/// Reads `10GiB`, `500MB`, `64K` (1024 bytes, as `Ki` and `KiB`), or a plain number of bytes.
/// Case does not matter.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let length = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "ki" => 1 << 10,
        "m" | "mi" => 1 << 20,
        "g" | "gi" => 1 << 30,
        "t" | "ti" => 1 << 40,
        unit => {
            SIZES
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))?
                .1
        }
    };
    number.checked_mul(length)
}

/// `bytes` in the largest binary unit that holds it exactly.
pub fn format_size(bytes: u64) -> String {
    SIZES[..4]
        .iter()
        .find(|(_, length)| bytes > 0 && bytes.is_multiple_of(*length))
        .map_or_else(
            || format!("{bytes}B"),
            |(unit, length)| format!("{}{unit}", bytes / length),
        )
}

/// A whole number and what follows it, white space between them left out.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        let seconds = |text| parse_duration(text).map(|d| d.as_secs_f64());
        assert_eq!(seconds("30"), Some(30.0));
        assert_eq!(seconds("30 s"), Some(30.0));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!(seconds("30d"), Some(2_592_000.0));
        assert_eq!(seconds("2min"), Some(120.0));
        for wrong in [
            "",
            "s",
            "-1s",
            "1.5s",
            "30 parsecs",
            "1M",
            "999999999999999999999s",
            "18446744073709551615d",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
        assert_eq!(parse_size("10GiB"), Some(10 << 30));
        assert_eq!(parse_size("10gb"), Some(10_000_000_000));
        assert_eq!(parse_size("64K"), Some(65_536));
        assert_eq!(parse_size("7"), Some(7));
        for wrong in ["", "GiB", "-1", "1.5G", "1 furlong", "99999999999TiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn writes_the_largest_exact_unit() {
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::from_secs(86_400 * 30)), "30d");
        assert_eq!(format_duration(Duration::ZERO), "0s");
        assert_eq!(format_size(1 << 40), "1TiB");
        assert_eq!(format_size(1536), "1536B");
        assert_eq!(format_size(0), "0B");
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(millis in 0..u64::MAX / 2, bytes: u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }
    }
}
