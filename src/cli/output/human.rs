//! Numbers as people read them.

use std::time::Duration;

/// `1.5 MiB`, `17 B`: about three digits, in powers of 1024.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024 of a unit is one of the next.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `12.3 MiB/s`.
pub fn rate(bytes_per_second: f64) -> String {
    // Negative numbers, and what is no number, become 0.
    format!("{}/s", bytes(bytes_per_second as u64))
}

/// `340 ms`, `2.5 s`, `42 s`, `3 min 04 s`, `2 h 05 min`, `3 d 04 h`.
pub fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{millis} ms"),
        1..10 => format!("{}.{} s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `42%`, rounded down: `100%` means all of it.
pub fn percent(percent: f64) -> String {
    format!("{}%", percent.clamp(0.0, 100.0) as u8)
}

/// `1 path`, `2 paths`.
pub fn count(number: u64, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {one}s")
    }
}

/// A bar of `width` columns, of which `percent` are filled; full only at 100.
pub fn bar(percent: f64, width: usize, unicode: bool) -> String {
    /// One to seven eighths of a column.
    const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share = percent.clamp(0.0, 100.0) / 100.0;
    if !unicode {
        let full = (share * width as f64) as usize;
        return format!(
            "{}{}",
            "#".repeat(full),
            "-".repeat(width.saturating_sub(full))
        );
    }
    let eighths = (share * (width * 8) as f64) as usize;
    let (full, part) = (eighths / 8, eighths % 8);
    let mut bar = "█".repeat(full);
    bar.extend(part.checked_sub(1).map(|part| EIGHTHS[part]));
    let filled = full + usize::from(part > 0);
    bar.push_str(&" ".repeat(width.saturating_sub(filled)));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_about_three_digits() {
        for (number, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (102_400, "100 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (284 << 20, "284 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), want);
        }
        assert_eq!(rate(2048.7), "2.0 KiB/s");
        assert_eq!(rate(f64::NAN), "0 B/s");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (millis, want) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (2590, "2.5 s"),
            (59_999, "59 s"),
            (184_000, "3 min 04 s"),
            (7_500_000, "2 h 05 min"),
            (273_600_000, "3 d 04 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), want);
        }
    }

    #[test]
    fn only_all_of_it_is_a_full_bar() {
        assert_eq!(percent(99.99), "99%");
        assert_eq!(bar(99.99, 4, false), "###-");
        assert_eq!(bar(100.0, 4, false), "####");
        assert_eq!(bar(99.99, 4, true), "███▉");
        assert_eq!(bar(100.0, 4, true), "████");
        assert_eq!(bar(50.0, 3, true), "█▌ ");
        assert_eq!(bar(0.0, 3, true), "   ");
        assert_eq!(bar(250.0, 2, true), "██");
        assert_eq!(bar(50.0, 0, true), "");
    }
}
