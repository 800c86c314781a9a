//! The text of a `nix.conf`: pure, includes are reported and not followed.
//!
//! Source of the format: `parseConfigFiles` in Nix's `libutil/configuration.cc`: lines of words;
//! `#` begins a comment; `NAME = WORDS`, `include FILE`, `!include FILE` (which may be missing).

/// A line that says something, with its number from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The line, from 1.
    pub line: usize,
    /// The setting's name; `include` or `!include` for an include.
    pub key: String,
    /// Its words, with one space between; the file of an include.
    pub value: String,
}

/// The settings of `text` in their order. Lines that Nix would refuse are left out: a `nix.conf`
/// belongs to Nix, and narfs takes from it what it understands.
pub fn parse(text: &str) -> Vec<Setting> {
    text.lines()
        .enumerate()
        .filter_map(|(index, line)| setting(index + 1, line))
        .collect()
}

fn setting(line: usize, text: &str) -> Option<Setting> {
    let text = text.split_once('#').map_or(text, |(before, _)| before);
    let mut words = text.split_ascii_whitespace();
    let key = words.next()?;
    if key != "include" && key != "!include" && words.next()? != "=" {
        return None;
    }
    let value = words.collect::<Vec<_>>().join(" ");
    Some(Setting {
        line,
        key: key.into(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_nix_reads() {
        let text = "# comment\n\nsubstituters = https://a  https://b # trailing\nempty =\n!include extra.conf\nbad line\nx=y\n";
        let found: Vec<_> = parse(text)
            .into_iter()
            .map(|s| (s.line, s.key, s.value))
            .collect();
        let want = [
            (3, "substituters", "https://a https://b"),
            (4, "empty", ""),
            (5, "!include", "extra.conf"),
        ];
        assert_eq!(
            found,
            want.map(|(line, key, value)| (line, key.to_string(), value.to_string()))
        );
    }
}
