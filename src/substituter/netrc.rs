//! `netrc` files, read as curl reads them, because Nix hands its `netrc-file` to curl.
//!
//! Pure: text in, entries out. Words are separated by white space; a word may stand in double
//! quotes, with `\"`, `\\`, `\n`, `\r` and `\t` inside; outside quotes a backslash is a backslash.
//! A word that begins with `#` where a keyword is expected makes the rest of its line a comment.
//! `macdef` goes to the next empty line. Unknown words are skipped, so a file never fails as a
//! whole and no message can quote a secret from it.
//!
//! Format: <https://everything.curl.dev/usingcurl/netrc.html>, `lib/netrc.c` of curl.

use super::secret::Secret;

/// What to send to one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user; empty where the file names none.
    pub user: String,
    /// The password; empty where the file names none.
    pub password: Secret,
}

/// The entries of a `netrc` file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Netrc {
    machines: Vec<(String, Login)>,
    default: Option<Login>,
}

impl Netrc {
    /// Reads a whole file. Bytes that are not UTF-8 are kept as far as possible.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut words = Words {
            rest: text.strip_prefix('\u{feff}').unwrap_or(&text),
        };
        let mut netrc = Self::default();
        let mut current: Option<(Option<String>, Login)> = None;
        while let Some(word) = words.keyword() {
            match word.as_str() {
                "machine" => {
                    netrc.keep(current.take());
                    if let Some(host) = words.value() {
                        current = Some((Some(host.to_ascii_lowercase()), Login::empty()));
                    }
                }
                "default" => {
                    netrc.keep(current.replace((None, Login::empty())));
                }
                "login" | "user" => {
                    if let (Some((_, login)), Some(user)) = (&mut current, words.value()) {
                        login.user = user;
                    }
                }
                "password" | "passwd" => {
                    if let (Some((_, login)), Some(password)) = (&mut current, words.value()) {
                        login.password = Secret::new(password);
                    }
                }
                "account" => {
                    words.value();
                }
                "macdef" => words.skip_macro(),
                _ => {}
            }
        }
        netrc.keep(current);
        netrc
    }

    fn keep(&mut self, entry: Option<(Option<String>, Login)>) {
        match entry {
            Some((Some(host), login)) => self.machines.push((host, login)),
            // The first default counts: nothing behind it is ever looked at.
            Some((None, login)) => {
                self.default.get_or_insert(login);
            }
            None => {}
        }
    }

    /// Every entry.
    pub fn logins(&self) -> impl Iterator<Item = &Login> {
        let machines = self.machines.iter().map(|(_, login)| login);
        machines.chain(&self.default)
    }

    /// The first entry for exactly this host (no port), and for this user if one is given.
    pub fn machine(&self, host: &str, user: Option<&str>) -> Option<&Login> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.machines
            .iter()
            .find(|(name, login)| name.eq_ignore_ascii_case(host) && login.is_for(user))
            .map(|(_, login)| login)
    }

    /// As [`Netrc::machine`], or else the `default` entry.
    pub fn machine_or_default(&self, host: &str, user: Option<&str>) -> Option<&Login> {
        self.machine(host, user)
            .or_else(|| self.default.as_ref().filter(|login| login.is_for(user)))
    }
}

impl Login {
    fn empty() -> Self {
        Self {
            user: String::new(),
            password: Secret::default(),
        }
    }

    fn is_for(&self, user: Option<&str>) -> bool {
        user.is_none_or(|user| user == self.user)
    }
}

/// The words of a file, one after the other.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// The next word, comments skipped.
    fn keyword(&mut self) -> Option<String> {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return self.value();
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, next)| next);
        }
    }

    /// The next word, whatever it begins with.
    fn value(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        if self.rest.is_empty() {
            return None;
        }
        match self.rest.strip_prefix('"') {
            Some(quoted) => Some(self.quoted(quoted.len())),
            None => {
                let end = self
                    .rest
                    .find(char::is_whitespace)
                    .unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                let word = word.to_owned();
                self.rest = rest;
                Some(word)
            }
        }
    }

    /// The inside of a quoted word; `left` bytes are left behind the opening quote. Without a
    /// closing one it ends with the file.
    fn quoted(&mut self, left: usize) -> String {
        let inside = &self.rest[self.rest.len() - left..];
        let mut word = String::new();
        let mut chars = inside.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => match chars.next() {
                    Some('n') => word.push('\n'),
                    Some('r') => word.push('\r'),
                    Some('t') => word.push('\t'),
                    Some(other) => word.push(other),
                    None => break,
                },
                other => word.push(other),
            }
        }
        let behind = chars.as_str().len();
        self.rest = &self.rest[self.rest.len() - behind..];
        word
    }

    /// A macro is named on the line of `macdef` and goes to the next empty line.
    fn skip_macro(&mut self) {
        loop {
            let (line, next) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
            self.rest = next;
            if line.trim().is_empty() || next.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(netrc: &Netrc, host: &str) -> Option<(String, String)> {
        let login = netrc.machine_or_default(host, None)?;
        Some((login.user.clone(), login.password.expose().to_owned()))
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn reads_a_real_file() {
        let netrc = Netrc::parse(
            b"# our caches\nmachine cache.example.org\n  login ada\n  password p@ss\\w#rd\n\
              machine Other.example.org login bob password \"two words\\\"\" # trailing\n\
              machine keyless.example.org password only-a-token\n\
              macdef init\nmachine evil login eve password no\n\n\
              machine after.example.org login mac password #hash\n\
              default login anonymous password me@here\n",
        );
        assert_eq!(
            login(&netrc, "cache.example.org"),
            pair("ada", "p@ss\\w#rd")
        );
        assert_eq!(
            login(&netrc, "CACHE.example.org"),
            pair("ada", "p@ss\\w#rd")
        );
        assert_eq!(
            login(&netrc, "other.example.org"),
            pair("bob", "two words\"")
        );
        assert_eq!(
            login(&netrc, "keyless.example.org"),
            pair("", "only-a-token")
        );
        assert_eq!(login(&netrc, "after.example.org"), pair("mac", "#hash"));
        assert_eq!(login(&netrc, "evil"), pair("anonymous", "me@here"));
        assert_eq!(netrc.machine("evil", None), None);
    }

    #[test]
    fn picks_the_named_user() {
        let netrc = Netrc::parse(b"machine h login a password 1 machine h login b password 2");
        assert_eq!(netrc.machine("h", None).unwrap().user, "a");
        assert_eq!(
            netrc.machine("h", Some("b")).unwrap().password.expose(),
            "2"
        );
        assert_eq!(netrc.machine("h", Some("c")), None);
    }

    #[test]
    fn odd_files_give_what_they_hold() {
        for text in [
            "",
            "\n\n",
            "machine",
            "default",
            "password x",
            "macdef",
            "\"",
            "machine \"\\",
        ] {
            let netrc = Netrc::parse(text.as_bytes());
            assert_eq!(netrc.machine("host", None), None, "{text:?}");
        }
        assert_eq!(login(&Netrc::parse(b"machine h login"), "h"), pair("", ""));
        assert_eq!(
            login(
                &Netrc::parse(b"machine\th\r\nlogin\tu\r\npassword\tp\r\n"),
                "h"
            ),
            pair("u", "p")
        );
        assert_eq!(
            login(&Netrc::parse("machine ::1 password ä".as_bytes()), "[::1]"),
            pair("", "ä")
        );
    }

    #[test]
    fn debug_shows_no_password() {
        let shown = format!("{:?}", Netrc::parse(b"machine h login u password hunter2"));
        assert!(
            shown.contains("***") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_quoted_comes_back(logins in proptest::collection::vec(("\\PC*", "(?s).*"), 0..5)) {
            let quoted = |text: &str| {
                let inside = text.replace('\\', "\\\\").replace('"', "\\\"");
                format!("\"{inside}\"")
            };
            let mut text = String::new();
            for (n, (user, password)) in logins.iter().enumerate() {
                let (user, password) = (quoted(user), quoted(password));
                text += &format!("machine h{n}\n\tlogin {user} # it's me\n\tpassword {password}\n");
            }
            let netrc = Netrc::parse(text.as_bytes());
            for (n, (user, password)) in logins.iter().enumerate() {
                let expected = pair(user, password);
                proptest::prop_assert_eq!(login(&netrc, &format!("h{n}")), expected);
            }
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            let words = ["machine ", "login ", "\"", "\\", "macdef ", "\n", "default ", "#"];
            let mut text = Vec::new();
            for byte in bytes {
                text.extend_from_slice(words.get(byte as usize).map_or(&[byte][..], |w| w.as_bytes()));
            }
            Netrc::parse(&text).machine_or_default("h", None);
        }
    }
}
