//! `nix.conf`: the settings that people have already.
//!
//! Source of the format: `AbstractConfig::applyConfig` in Nix's `libutil/config.cc`.

/// Key under which [`parse`] reports an `include` line: the file has to exist.
pub const INCLUDE: &str = "include";

/// Key under which [`parse`] reports an `!include` line: the file may be missing.
pub const INCLUDE_IF_PRESENT: &str = "!include";

/// Why a text is no `nix.conf`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NixConfError {
    /// Bytes that are no UTF-8.
    #[error("nix.conf, line {line}: not UTF-8")]
    Encoding {
        /// From 1.
        line: usize,
    },
    /// A line that is neither `name = value` nor an inclusion.
    #[error("nix.conf, line {line}: {text:?} is neither `name = value` nor `include file`")]
    Line {
        /// From 1.
        line: usize,
        /// As written.
        text: String,
    },
}

/// The settings in order, each with its words joined by one space.
///
/// A line that includes another file stands in its place, with the key [`INCLUDE`] or
/// [`INCLUDE_IF_PRESENT`] and the path as written: relative ones are relative to the file that
/// holds the line. A later setting of one name replaces an earlier one; names that begin with
/// `extra-` add to the one without. Both are left to the caller.
pub fn parse(text: &[u8]) -> Result<Vec<(String, String)>, NixConfError> {
    let mut settings = Vec::new();
    for (number, line) in text.split(|b| *b == b'\n').enumerate() {
        let number = number + 1;
        let code = line.split(|b| *b == b'#').next().unwrap_or_default();
        let code =
            std::str::from_utf8(code).map_err(|_| NixConfError::Encoding { line: number })?;
        let words: Vec<&str> = code.split_ascii_whitespace().collect();
        let (key, value) = match words.as_slice() {
            [] => continue,
            [key @ (INCLUDE | INCLUDE_IF_PRESENT), path] => (*key, (*path).to_owned()),
            // Nix refuses these as inclusions of several files.
            [INCLUDE | INCLUDE_IF_PRESENT, ..] => return Err(wrong(number, code)),
            [name, "=", value @ ..] => (*name, value.join(" ")),
            _ => return Err(wrong(number, code)),
        };
        settings.push((key.to_owned(), value));
    }
    Ok(settings)
}

fn wrong(line: usize, code: &str) -> NixConfError {
    NixConfError::Line {
        line,
        text: code.trim().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_settings_comments_and_inclusions_in_order() {
        let text = b"# comment \xff\nsubstituters = https://a   https://b # tail\n\
            require-sigs =\r\n\n!include more.conf\ninclude /etc/x\nextra-substituters = c";
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let want = vec![
            pair("substituters", "https://a https://b"),
            pair("require-sigs", ""),
            pair(INCLUDE_IF_PRESENT, "more.conf"),
            pair(INCLUDE, "/etc/x"),
            pair("extra-substituters", "c"),
        ];
        assert_eq!(parse(text), Ok(want));
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        for (text, line) in [
            ("a = b\nc=d", 2),
            ("include", 1),
            ("include = a", 1),
            ("include a b", 1),
            ("x", 1),
        ] {
            assert!(
                matches!(parse(text.as_bytes()), Err(NixConfError::Line { line: l, .. }) if l == line)
            );
        }
        assert_eq!(
            parse(b"\na = \xff"),
            Err(NixConfError::Encoding { line: 2 })
        );
    }
}
