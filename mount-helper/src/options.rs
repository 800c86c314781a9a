//! The command line, as mount(8) calls its helpers and as people type it.
//!
//! ```text
//! narfs-mount SOURCE MOUNTPOINT [-fnsv] [-o KEY=VALUE,…] [-t TYPE] [-- ARGUMENT…]
//! ```
//!
//! Keys that are not of mount(8) and not of this program are settings of narfs, which knows them.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Duration,
};

use crate::Failure;

/// What `--help` prints.
pub(crate) const HELP: &str = include_str!("help.txt");

/// Sources that name no cache: those of the configuration are used.
const CONFIGURED: [&str; 2] = ["narfs", "none"];

/// Options of mount(8) that say nothing here: the mount is read-only, without devices and set-user-id
/// programs and has no access times whatever they say, and everybody may use it.
const IGNORED: &[&str] = &[
    "defaults",
    "ro",
    "rw",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "group",
    "nogroup",
    "owner",
    "noowner",
    "exec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "nofail",
    "_netdev",
    "silent",
    "loud",
    "default_permissions",
    "allow_other",
];
/// As they begin.
const IGNORED_BEGIN: &[&str] = &["x-", "X-", "comment=", "user=", "helper=", "uhelper="];

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub mountpoint: PathBuf,
    /// Settings of narfs, `KEY=VALUE` each.
    pub settings: Vec<OsString>,
    /// Further arguments of `narfs daemon`, behind `--`.
    pub arguments: Vec<OsString>,
    /// Whether it stays in the foreground.
    pub foreground: bool,
    /// Whether everything but mounting is done.
    pub fake: bool,
    /// Whether programs can't be started from the mount.
    pub noexec: bool,
    /// The user that the daemon runs as.
    pub user: Option<String>,
    /// The `narfs` to start.
    pub program: Option<PathBuf>,
    /// The state directory, where the caller knows it.
    pub state_dir: Option<PathBuf>,
    /// The form of log lines, where the caller knows it.
    pub log_format: String,
    /// How long a daemon may take until it serves.
    pub ready_timeout: Duration,
    /// How long the mount may be without an answer before its daemon is replaced; zero: for ever.
    pub watchdog: Duration,
    /// Numbers of descriptors that an earlier program of this process left open: device, greeting.
    pub resume: Option<(i32, i32)>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Mount(Box<Options>),
    /// Ask a mount whether it answers.
    Probe(PathBuf),
    Help,
    Version,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mountpoint: PathBuf::new(),
            settings: Vec::new(),
            arguments: Vec::new(),
            foreground: false,
            fake: false,
            noexec: false,
            user: None,
            program: None,
            state_dir: None,
            log_format: String::new(),
            ready_timeout: Duration::from_secs(30),
            watchdog: Duration::from_secs(30),
            resume: None,
        }
    }
}

impl Options {
    /// Reads arguments; `-f` means "fake" to mount(8) and "foreground" to everybody else.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        by_mount: bool,
    ) -> Result<Wanted, Failure> {
        let mut options = Self::default();
        let mut places = Vec::new();
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            let text = argument.to_string_lossy();
            let (flag, inline) = match text.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value)),
                _ => (&*text, None),
            };
            let mut value = || {
                let value = inline.map(OsString::from).or_else(|| rest.next());
                value.ok_or_else(|| Failure::usage(format_args!("{flag} needs a value")))
            };
            match flag {
                "-h" | "--help" => return Ok(Wanted::Help),
                "-V" | "--version" => return Ok(Wanted::Version),
                "--" => options.arguments.extend(rest.by_ref()),
                "-o" => options.take_all(&value()?)?,
                "-t" => drop(value()?),
                "-N" => return Err(Failure::usage("-N is not known; run it with nsenter")),
                "--probe" => return Ok(Wanted::Probe(value()?.into())),
                "--program" => options.program = Some(value()?.into()),
                "--state-dir" => options.state_dir = Some(value()?.into()),
                "--log-format" => options.log_format = value()?.to_string_lossy().into_owned(),
                "--ready-timeout" => options.ready_timeout = seconds(flag, &value()?)?,
                "--resume" => options.resume = Some(two_numbers(&value()?)?),
                letters if letters.len() > 1 && is_letters(letters) => {
                    options.foreground |= letters.contains('f') && !by_mount;
                    options.fake |= letters.contains('f') && by_mount;
                }
                flag if flag.starts_with('-') => {
                    let what = format!("{flag} is not known; see narfs-mount --help");
                    return Err(Failure::usage(what));
                }
                _ => places.push(argument),
            }
        }
        let [source, mountpoint] = <[_; 2]>::try_from(places).map_err(|_| {
            Failure::usage("a source and a mountpoint are wanted; see narfs-mount --help")
        })?;
        options.take_source(&source);
        options.mountpoint = std::path::absolute(&mountpoint)
            .map_err(|e| Failure::system(mountpoint.display(), e))?;
        Ok(Wanted::Mount(Box::new(options)))
    }

    /// Caches, separated by commas, or none.
    fn take_source(&mut self, source: &OsStr) {
        let named = !CONFIGURED.iter().any(|word| source == *word);
        let urls = source.as_bytes().split(|byte| *byte == b',');
        let urls = urls.filter(|url| named && !url.is_empty());
        let caches = urls.map(|url| setting(&[b"cache=", url].concat()));
        // They stand in front of the options on the command line of mount(8), and so here.
        self.settings.splice(0..0, caches);
    }

    /// Options, separated by commas that do not stand between quotes.
    fn take_all(&mut self, options: &OsStr) -> Result<(), Failure> {
        let mut one = Vec::new();
        let mut quoted = false;
        for byte in options.as_bytes() {
            match byte {
                b'"' => quoted = !quoted,
                b',' if !quoted => self.take(&std::mem::take(&mut one))?,
                byte => one.push(*byte),
            }
        }
        self.take(&one)
    }

    fn take(&mut self, option: &[u8]) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(option);
        let (key, value) = text.split_once('=').unwrap_or((&text, ""));
        match key {
            "" => {}
            "noexec" => self.noexec = true,
            "setuid" => self.user = Some(value.into()),
            "watchdog" => self.watchdog = seconds(key, OsStr::new(value))?,
            "ready-timeout" => self.ready_timeout = seconds(key, OsStr::new(value))?,
            "remount" => {
                let what = "a mount of narfs can't be changed by remounting: unmount it first";
                return Err(Failure::usage(what));
            }
            _ if IGNORED.contains(&key) => {}
            _ if IGNORED_BEGIN.iter().any(|begin| text.starts_with(begin)) => {}
            _ => self.settings.push(setting(option)),
        }
        Ok(())
    }
}

fn setting(option: &[u8]) -> OsString {
    OsString::from_vec([b"--set=", option].concat())
}

/// Flags of mount(8) without a value: fake or foreground, no table, tolerant, talkative.
fn is_letters(flag: &str) -> bool {
    let letters = flag.strip_prefix('-');
    letters.is_some_and(|letters| letters.chars().all(|letter| "fnsv".contains(letter)))
}

/// Seconds, with or without an `s` behind them; down to milliseconds.
fn seconds(key: &str, value: &OsStr) -> Result<Duration, Failure> {
    let text = value.to_string_lossy();
    let number = text.strip_suffix('s').unwrap_or(&text).parse().ok();
    let time = number.and_then(|number| Duration::try_from_secs_f64(number).ok());
    time.ok_or_else(|| {
        Failure::usage(format_args!(
            "{key}={text}: not a number of seconds, such as 30"
        ))
    })
}

fn two_numbers(value: &OsStr) -> Result<(i32, i32), Failure> {
    let text = value.to_string_lossy();
    let numbers = text.split_once(',');
    let parsed = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parsed.ok_or_else(|| Failure::usage(format_args!("--resume {text}: not two numbers")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(by_mount: bool, arguments: &[&str]) -> Options {
        let arguments = arguments.iter().map(OsString::from);
        match Options::parse(arguments, by_mount) {
            Ok(Wanted::Mount(options)) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mount_calls_it_like_this() {
        let line = "https://a,https://b /nix/store -n -o rw,nofail,x-systemd.automount,trusted-key=k-1:AA==,setuid=narfs";
        let words: Vec<_> = line.split(' ').collect();
        let options = parsed(true, &words);
        let settings = ["cache=https://a", "cache=https://b", "trusted-key=k-1:AA=="];
        assert_eq!(
            options.settings,
            settings.map(|s| OsString::from(format!("--set={s}")))
        );
        assert_eq!(options.user.as_deref(), Some("narfs"));
        assert_eq!(options.mountpoint, PathBuf::from("/nix/store"));
        assert!(parsed(true, &["narfs", "/x", "-fv"]).fake);
    }

    #[test]
    fn people_call_it_like_this() {
        let options = parsed(
            false,
            &[
                "-f",
                "-o",
                "state-dir=/s,watchdog=2.5",
                "narfs",
                "/x",
                "--",
                "--root=y",
                "-f",
            ],
        );
        assert_eq!(
            parsed(false, &["narfs", "/x", "--log-format=json"]).log_format,
            "json"
        );
        assert!(options.foreground && !options.fake);
        assert_eq!(options.settings, ["--set=state-dir=/s"]);
        assert_eq!(options.arguments, ["--root=y", "-f"]);
        assert_eq!(options.watchdog, Duration::from_millis(2500));
    }

    #[test]
    fn commas_in_quotes_are_of_the_value() {
        let options = parsed(false, &["none", "/x", "-o", "a=\"1,2\",b"]);
        assert_eq!(options.settings, ["--set=a=1,2", "--set=b"]);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for wrong in [
            &["narfs"][..],
            &["narfs", "/x", "/y"],
            &["narfs", "/x", "-o"],
            &["narfs", "/x", "--frobnicate"],
            &["narfs", "/x", "-o", "watchdog=soon"],
            &["narfs", "/x", "-o", "remount,ro"],
        ] {
            let failure = Options::parse(wrong.iter().map(OsString::from), false).unwrap_err();
            assert_eq!(failure.exit, crate::exit::USAGE, "{wrong:?}");
        }
    }
}
