//! JSON, token by token: for documents nested deeper than a parser that recurses can go.
//!
//! A legal listing nests 4,096 objects and more; `serde_json` stops at 128. Strings are bytes:
//! Nix 2.8 writes names that are not UTF-8 as they are, and they are read as they are.

use std::borrow::Cow;

/// Where a document stops being JSON, or what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syntax {
    /// Bytes from the beginning.
    pub at: usize,
    pub expected: &'static str,
}

/// A document that is being read.
pub(super) struct Json<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Json<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    pub fn wrong<T>(&self, expected: &'static str) -> Result<T, Syntax> {
        Err(Syntax {
            at: self.at,
            expected,
        })
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8, expected: &'static str) -> Result<(), Syntax> {
        if self.peek() != Some(byte) {
            return self.wrong(expected);
        }
        self.at += 1;
        Ok(())
    }

    /// `{`
    pub fn open(&mut self) -> Result<(), Syntax> {
        self.take(b'{', "an object")
    }

    /// The key of the next member, with its colon; `None` after the `}` that ends the object.
    /// `first` has to be true for the first member, and is set to false.
    pub fn member(&mut self, first: &mut bool) -> Result<Option<Cow<'a, [u8]>>, Syntax> {
        let first = std::mem::replace(first, false);
        match self.peek() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(b',') if !first => self.at += 1,
            _ if !first => return self.wrong("`,` or `}`"),
            _ => {}
        }
        let key = self.string()?;
        self.take(b':', "`:`")?;
        Ok(Some(key))
    }

    /// The end of the document.
    pub fn end(&mut self) -> Result<(), Syntax> {
        if self.peek().is_some() {
            self.wrong("the end of the document")
        } else {
            Ok(())
        }
    }

    pub fn boolean(&mut self) -> Result<bool, Syntax> {
        if self.peek() == Some(b't') {
            self.word(b"true").map(|()| true)
        } else {
            self.word(b"false").map(|()| false)
        }
    }

    /// Whether `null` comes next; passes over it.
    pub fn null(&mut self) -> Result<bool, Syntax> {
        if self.peek() != Some(b'n') {
            return Ok(false);
        }
        self.word(b"null").map(|()| true)
    }

    fn word(&mut self, word: &'static [u8]) -> Result<(), Syntax> {
        self.peek();
        if !self.text[self.at..].starts_with(word) {
            return self.wrong("true, false or null");
        }
        self.at += word.len();
        Ok(())
    }

    /// A number as written.
    pub fn number(&mut self) -> Result<&'a [u8], Syntax> {
        self.peek();
        let start = self.at;
        let rest = &self.text[start..];
        let in_number = |b: &u8| b.is_ascii_digit() || b"+-.eE".contains(b);
        let len = rest
            .iter()
            .position(|b| !in_number(b))
            .unwrap_or(rest.len());
        let number = &rest[..len];
        if !is_number(number) {
            return self.wrong("a number");
        }
        self.at += len;
        Ok(number)
    }

    /// A string with its escapes undone.
    pub fn string(&mut self) -> Result<Cow<'a, [u8]>, Syntax> {
        self.take(b'"', "a string")?;
        let start = self.at;
        let mut owned: Option<Vec<u8>> = None;
        loop {
            let rest = &self.text[self.at..];
            let stop = rest
                .iter()
                .position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
            let Some(stop) = stop else {
                self.at = self.text.len();
                return self.wrong("the end of a string");
            };
            let plain = &rest[..stop];
            self.at += stop + 1;
            match (rest[stop], &mut owned) {
                (b'"', None) => return Ok(Cow::Borrowed(&self.text[start..self.at - 1])),
                (b'"', Some(out)) => {
                    out.extend_from_slice(plain);
                    return Ok(Cow::Owned(owned.unwrap_or_default()));
                }
                (b'\\', _) => {
                    let out = owned.get_or_insert_default();
                    out.extend_from_slice(plain);
                    let c = self.escape()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => return self.wrong("a string without bare control characters"),
            }
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> Result<char, Syntax> {
        let Some(letter) = self.text.get(self.at).copied() else {
            return self.wrong("the end of a string");
        };
        self.at += 1;
        Ok(match letter {
            b'"' | b'\\' | b'/' => letter.into(),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex4()?;
                let mut units = vec![unit];
                // The first half of a pair; the second has to follow.
                if (0xd800..0xdc00).contains(&unit) && self.text[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    units.push(self.hex4()?);
                }
                let mut chars = char::decode_utf16(units);
                match (chars.next(), chars.next()) {
                    (Some(Ok(c)), None) => c,
                    _ => return self.wrong("a pair of surrogates"),
                }
            }
            _ => return self.wrong("a known escape"),
        })
    }

    fn hex4(&mut self) -> Result<u16, Syntax> {
        let digits = self
            .text
            .get(self.at..self.at + 4)
            .and_then(|d| std::str::from_utf8(d).ok());
        let unit = digits
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|d| u16::from_str_radix(d, 16).ok());
        let Some(unit) = unit else {
            return self.wrong("four hexadecimal digits");
        };
        self.at += 4;
        Ok(unit)
    }

    /// Passes over one value of any kind, however deep.
    pub fn skip(&mut self) -> Result<(), Syntax> {
        // The brackets that will close what is open; `first` belongs to the innermost.
        let mut closing: Vec<u8> = Vec::new();
        loop {
            let mut opened = false;
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    closing.push(b'}');
                    opened = true;
                }
                Some(b'[') => {
                    self.at += 1;
                    closing.push(b']');
                    opened = true;
                }
                Some(b'"') => drop(self.string()?),
                Some(b't' | b'f') => drop(self.boolean()?),
                Some(b'n') => drop(self.null()?),
                _ => drop(self.number()?),
            }
            // Close what ends here, up to the place where another value has to come.
            loop {
                match closing.last() {
                    None => return Ok(()),
                    Some(b'}') => match self.member(&mut opened)? {
                        Some(_) => break,
                        None => drop(closing.pop()),
                    },
                    Some(_) => match self.peek() {
                        Some(b']') => {
                            self.at += 1;
                            closing.pop();
                        }
                        Some(b',') if !opened => {
                            self.at += 1;
                            break;
                        }
                        _ if opened => break,
                        _ => return self.wrong("`,` or `]`"),
                    },
                }
                opened = false;
            }
        }
    }
}

/// Whether the text is a number as JSON has them.
fn is_number(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let digits = |t: &[u8]| t.iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = digits(text);
    if whole == 0 || (whole > 1 && text[0] == b'0') {
        return false;
    }
    let mut rest = &text[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let len = digits(fraction);
        if len == 0 {
            return false;
        }
        rest = &fraction[len..];
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = match exponent {
            [b'+' | b'-', digits @ ..] => digits,
            digits => digits,
        };
        let len = digits(exponent);
        return len > 0 && len == exponent.len();
    }
    rest.is_empty()
}
