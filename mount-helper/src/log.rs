//! The helper's own log lines, in the form of the daemon's (`log-format`): text, JSON, or the journal.

use std::{
    fmt::{self, Display, Write as _},
    io::{self, Write},
    os::unix::net::UnixDatagram,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where the system's journal takes events.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// A form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Form {
    /// `narfs-mount: …`
    #[default]
    Text,
    /// One object a line, with the keys that the daemon's lines have.
    Json,
    /// Events of the journal; lines of text where there is none.
    Journald,
}

impl Form {
    /// As the setting `log-format` has it; what it can't be is the daemon's to refuse.
    pub fn named(name: &str) -> Self {
        match name {
            "json" => Self::Json,
            "journald" => Self::Journald,
            _ => Self::Text,
        }
    }
}

static FORM: OnceLock<Form> = OnceLock::new();

/// Log lines have this form from now on. The first call counts.
pub(crate) fn begin(form: Form) {
    let _ = FORM.set(form);
}

#[derive(Clone, Copy)]
enum Level {
    Info,
    Warn,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
        }
    }

    /// As syslog counts.
    fn priority(self) -> u8 {
        match self {
            Self::Info => 6,
            Self::Warn => 4,
        }
    }
}

/// A line of the log: what happens.
pub(crate) fn say(what: impl Display) {
    line(Level::Info, &what);
}

/// A line of the log: what should not have happened.
pub(crate) fn warn(what: impl Display) {
    line(Level::Warn, &what);
}

fn line(level: Level, what: &dyn Display) {
    let form = FORM.get().copied().unwrap_or_default();
    if form == Form::Journald && to_journal(level, &what.to_string()).is_ok() {
        return;
    }
    let line = match form {
        Form::Json => json(level, &what.to_string(), SystemTime::now()),
        _ => format!("narfs-mount: {what}"),
    };
    // On a full disk the line is lost, and not the mount: `eprintln` would panic.
    let _ = writeln!(io::stderr(), "{line}");
}

fn to_journal(level: Level, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not stop the helper.
    socket.set_nonblocking(true)?;
    let event = format!(
        "PRIORITY={}\nSYSLOG_IDENTIFIER=narfs-mount\nMESSAGE={}\n",
        level.priority(),
        message.replace('\n', " ")
    );
    socket.send_to(event.as_bytes(), JOURNAL).map(drop)
}

fn json(level: Level, message: &str, now: SystemTime) -> String {
    format!(
        r#"{{"timestamp":"{}","level":"{}","message":"{}","target":"narfs_mount"}}"#,
        Utc(now.duration_since(UNIX_EPOCH).unwrap_or_default()),
        level.name(),
        Escaped(message)
    )
}

/// The text of a JSON string.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                c if c < ' ' => write!(f, "\\u{:04x}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A time since 1970 as RFC 3339 writes it, in UTC, to the microsecond.
struct Utc(Duration);

impl Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0.as_secs(), self.0.subsec_micros());
        let (days, time) = (seconds / 86_400, seconds % 86_400);
        // Years begin in March here, so that the leap day is the last of one; 400 years are an era.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * of_era + of_era / 4 - of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = (from_march + 2) % 12 + 1;
        let year = era * 400 + of_era + u64::from(month <= 2);
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let shown = |seconds, micros: u32| Utc(Duration::new(seconds, micros * 1000)).to_string();
        assert_eq!(shown(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(shown(951_782_399, 7), "2000-02-28T23:59:59.000007Z");
        assert_eq!(shown(951_782_400, 0), "2000-02-29T00:00:00.000000Z");
        assert_eq!(shown(1_709_251_199, 999_999), "2024-02-29T23:59:59.999999Z");
        assert_eq!(shown(1_735_689_599, 0), "2024-12-31T23:59:59.000000Z");
        assert_eq!(shown(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn any_message_is_one_line_of_json() {
        let line = json(Level::Warn, "a \"b\" \\ c\n\u{1}é", UNIX_EPOCH);
        assert_eq!(
            line,
            r#"{"timestamp":"1970-01-01T00:00:00.000000Z","level":"WARN","message":"a \"b\" \\ c\u000a\u0001é","target":"narfs_mount"}"#
        );
    }

    #[test]
    fn forms_have_the_names_of_the_setting() {
        let forms = ["text", "json", "journald", "nonsense"].map(Form::named);
        assert_eq!(forms, [Form::Text, Form::Json, Form::Journald, Form::Text]);
    }
}
