//! Text in HTML.

use std::fmt::{self, Display, Write};

/// A text that means itself, between tags and within quotes.
pub(super) struct Escaped<'a>(&'a str);

/// `text`, to be written into a page.
pub(super) fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Not allowed in HTML, and not seen.
                c if c.is_control() && !c.is_whitespace() => {
                    f.write_char(char::REPLACEMENT_CHARACTER)?
                }
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out() {
        assert_eq!(
            escaped("</script><b a=\"1\" c='2'>&amp;\u{0}\u{85}\u{1b}x").to_string(),
            "&lt;/script&gt;&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;\u{fffd}\u{85}\u{fffd}x"
        );
    }
}
