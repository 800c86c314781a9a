//! containerd's filter language, as `List` speaks it.
//!
//! ```text
//! filter     selector { "," selector }            all of them
//! selector   path [ ("==" | "!=" | "~=") value ]  without an operator: is there
//! path       field { "." field }
//! field      quoted | letters, digits, underscores
//! value      quoted | anything without commas and white space
//! quoted     "…" with Go's escapes; after `~=` also /…/ and |…|
//! ```
//!
//! A list of filters takes what one of them takes; an empty list or an empty filter takes all. The
//! grammar is the one of containerd's package `filters`.

use std::{iter::Peekable, str::CharIndices};

use regex::Regex;

/// Something that filters look at.
pub trait Fields {
    /// The value of a field, if it is there.
    fn field(&self, path: &[String]) -> Option<&str>;
}

/// One filter.
#[derive(Debug)]
pub struct Filter(Vec<Selector>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    wanted: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the filter {filter:?} can't be read at character {at}: {reason}")]
pub struct FilterError {
    filter: String,
    at: usize,
    reason: String,
}

/// Whether one of the filters takes it, or there is none.
pub fn takes(filters: &[Filter], item: &impl Fields) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.takes(item))
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// With the place and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let mut parser = Parser {
            text,
            chars: text.char_indices().peekable(),
        };
        let mut selectors = Vec::new();
        loop {
            selectors.push(parser.selector()?);
            parser.skip_space();
            match parser.chars.next() {
                None => return Ok(Self(selectors)),
                Some((_, ',')) => {}
                Some((at, other)) => {
                    return Err(parser.error(at, format!("a comma was expected, not {other:?}")));
                }
            }
        }
    }

    fn takes(&self, item: &impl Fields) -> bool {
        self.0.iter().all(|selector| selector.takes(item))
    }
}

impl Selector {
    fn takes(&self, item: &impl Fields) -> bool {
        let value = item.field(&self.path);
        match &self.wanted {
            Wanted::Present => value.is_some(),
            Wanted::Equal(wanted) => value == Some(wanted),
            // What is not there is like an empty text, here and below.
            Wanted::NotEqual(wanted) => value.unwrap_or_default() != wanted,
            Wanted::Matches(wanted) => wanted.is_match(value.unwrap_or_default()),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl Parser<'_> {
    fn error(&self, at: usize, reason: impl Into<String>) -> FilterError {
        FilterError {
            filter: self.text.into(),
            at,
            reason: reason.into(),
        }
    }

    /// Where the next character stands.
    fn at(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    fn skip_space(&mut self) {
        while self.chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        std::iter::from_fn(|| self.chars.next_if(|(_, c)| wanted(*c)))
            .map(|(_, c)| c)
            .collect()
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        loop {
            self.skip_space();
            match self.chars.peek() {
                Some((_, '.')) => {
                    self.chars.next();
                    path.push(self.field()?);
                }
                Some((_, ',')) | None => {
                    let wanted = Wanted::Present;
                    return Ok(Selector { path, wanted });
                }
                Some(_) => break,
            }
        }
        let at = self.at();
        let operator = self.take_while(|c| "=!~".contains(c));
        let wanted = match operator.as_str() {
            "==" => Wanted::Equal(self.value(false)?),
            "!=" => Wanted::NotEqual(self.value(false)?),
            "~=" => {
                let value_at = self.at();
                let value = self.value(true)?;
                let regex = Regex::new(&value).map_err(|e| self.error(value_at, e.to_string()))?;
                Wanted::Matches(regex)
            }
            _ => return Err(self.error(at, "one of the operators == != ~= was expected")),
        };
        Ok(Selector { path, wanted })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_space();
        if self.chars.peek().is_some_and(|(_, c)| *c == '"') {
            return self.quoted();
        }
        let at = self.at();
        let field = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if field.is_empty() {
            return Err(self.error(at, "the name of a field was expected"));
        }
        Ok(field)
    }

    fn value(&mut self, of_regex: bool) -> Result<String, FilterError> {
        self.skip_space();
        let at = self.at();
        match self.chars.peek() {
            Some((_, '"')) => self.quoted(),
            Some((_, delimiter @ ('/' | '|'))) => {
                let delimiter = *delimiter;
                if !of_regex {
                    let reason = format!("a value that begins with {delimiter} has to be quoted");
                    return Err(self.error(at, reason));
                }
                self.delimited(delimiter)
            }
            _ => {
                let value = self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control());
                if value.is_empty() {
                    return Err(self.error(at, "a value was expected"));
                }
                Ok(value)
            }
        }
    }

    /// A regular expression between slashes or bars; only the delimiter is escaped in it.
    fn delimited(&mut self, delimiter: char) -> Result<String, FilterError> {
        let at = self.at();
        self.chars.next();
        let mut value = String::new();
        while let Some((_, c)) = self.chars.next() {
            match c {
                '\\' if self.chars.peek().is_some_and(|(_, c)| *c == delimiter) => {
                    self.chars.next();
                    value.push(delimiter);
                }
                c if c == delimiter => return Ok(value),
                c => value.push(c),
            }
        }
        Err(self.error(at, format!("it is not closed with {delimiter}")))
    }

    /// A text in double quotes, with Go's escapes.
    fn quoted(&mut self) -> Result<String, FilterError> {
        let begin = self.at();
        self.chars.next();
        let mut bytes = Vec::new();
        let mut utf8 = [0; 4];
        while let Some((at, c)) = self.chars.next() {
            match c {
                '"' => {
                    return String::from_utf8(bytes)
                        .map_err(|_| self.error(begin, "its escapes are no UTF-8"));
                }
                '\\' => self.escape(at, &mut bytes)?,
                c => bytes.extend(c.encode_utf8(&mut utf8).bytes()),
            }
        }
        Err(self.error(begin, "the quote is not closed"))
    }

    fn escape(&mut self, at: usize, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let Some((_, c)) = self.chars.next() else {
            return Err(self.error(at, "the quote is not closed"));
        };
        let byte = match c {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' | '"' => c as u8,
            'x' => self.digits(at, "", 2, 16)? as u8,
            '0'..='7' => {
                let value = self.digits(at, &c.to_string(), 2, 8)?;
                u8::try_from(value).map_err(|_| self.error(at, "an octal escape ends at \\377"))?
            }
            'u' | 'U' => {
                let value = self.digits(at, "", if c == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(value)
                    .ok_or_else(|| self.error(at, "there is no such character"))?;
                bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                return Ok(());
            }
            _ => return Err(self.error(at, format!("there is no escape \\{c}"))),
        };
        bytes.push(byte);
        Ok(())
    }

    /// `first` and `count` more digits, as a number.
    fn digits(
        &mut self,
        at: usize,
        first: &str,
        count: usize,
        radix: u32,
    ) -> Result<u32, FilterError> {
        let mut text = String::from(first);
        for _ in 0..count {
            text.extend(
                self.chars
                    .next_if(|(_, c)| c.is_digit(radix))
                    .map(|(_, c)| c),
            );
        }
        match text.len() == first.len() + count {
            true => u32::from_str_radix(&text, radix)
                .map_err(|_| self.error(at, "the escape is too large")),
            false => Err(self.error(at, format!("the escape has {count} digits"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Snapshot;

    impl Fields for Snapshot {
        fn field(&self, path: &[String]) -> Option<&str> {
            let (first, rest) = path.split_first()?;
            match (first.as_str(), rest.join(".").as_str()) {
                ("kind", "") => Some("active"),
                ("name", "") => Some("default/1/sha256:abc"),
                ("parent", "") => Some(""),
                ("labels", "containerd.io/gc.root") => Some("yes, \"really\""),
                ("labels", "a.b") => Some("c"),
                _ => None,
            }
        }
    }

    fn matches(text: &str) -> bool {
        takes(&[Filter::parse(text).unwrap()], &Snapshot)
    }

    #[test]
    fn takes_what_fits() {
        for text in [
            "",
            "kind==active",
            "kind == active , name",
            "name==default/1/sha256:abc",
            r#"name=="default/1/sha256:abc""#,
            "parent==\"\"",
            "kind!=view",
            "nothing!=x",
            r#"labels."containerd.io/gc.root""#,
            r#"labels."containerd.io/gc.root"=="yes, \"really\"""#,
            r#"labels."containerd.io/gc.root"~="^yes""#,
            "labels.a.b==c",
            r#"labels."a.b"==c"#,
            "name~=sha256:.*",
            "name~=/^default\\/1\\//",
            "name~=|abc$|,kind==active",
            r#""kind"=="\x61\u0063t\151ve""#,
        ] {
            assert!(matches(text), "{text}");
        }
    }

    #[test]
    fn leaves_what_does_not() {
        for text in [
            "kind==view",
            "kind==active,name==other",
            "nothing",
            "nothing==\"\"",
            "kind.more==active",
            "labels",
            r#"labels."containerd.io/gc.root"!="yes, \"really\"""#,
            "name~=^abc",
        ] {
            assert!(!matches(text), "{text}");
        }
    }

    #[test]
    fn one_of_several_is_enough_and_none_takes_all() {
        let parsed = |texts: &[&str]| -> Vec<Filter> {
            texts.iter().map(|t| Filter::parse(t).unwrap()).collect()
        };
        assert!(takes(&parsed(&["kind==view", "kind==active"]), &Snapshot));
        assert!(!takes(
            &parsed(&["kind==view", "kind==committed"]),
            &Snapshot
        ));
        assert!(takes(&[], &Snapshot));
    }

    #[test]
    fn says_what_cannot_be_read() {
        for (text, reason) in [
            ("kind=active", "operators"),
            ("kind===active", "operators"),
            ("kind==", "a value was expected"),
            ("kind==a b", "a comma was expected"),
            (",kind", "name of a field"),
            ("kind,", "name of a field"),
            ("labels.", "name of a field"),
            ("name==/x/", "has to be quoted"),
            ("name~=/x", "not closed"),
            ("name~=\"(\"", "unclosed group"),
            ("name==\"x", "not closed"),
            ("name==\"\\q\"", "no escape"),
            ("name==\"\\xf\"", "digits"),
            ("name==\"\\ud800\"", "no such character"),
            ("name==\"\\xff\"", "UTF-8"),
            ("name==\"\\777\"", "377"),
        ] {
            let error = Filter::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
