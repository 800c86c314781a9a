//! Values of flags that belong to one verb, in the units that the configuration has too.

use std::time::Duration;

use crate::config::units;

/// A time with a unit, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).ok_or_else(|| "write a time such as 500ms, 30s, 2m or 1h".into())
}

/// A size with a unit, or a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    units::parse_size(text)
        .ok_or_else(|| "write a size such as 10GiB, 500MB or a number of bytes".into())
}

/// Megabits a second: no infinity, nothing below zero.
pub(super) fn link_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("write a number of megabits per second, 0 for no limit".into()),
    }
}
