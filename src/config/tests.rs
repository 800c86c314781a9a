//! The layers together, over files in a directory of the test's own.

use std::{fs, path::PathBuf};

use proptest::prelude::*;

use super::*;

struct Machine {
    dir: tempfile::TempDir,
    environment: Environment,
    flags: Flags,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        fs::create_dir_all(path.join("home/.config/narfs")).unwrap();
        fs::create_dir(path.join("cwd")).unwrap();
        let home = path.join("home").to_string_lossy().into_owned();
        let environment = Environment {
            variables: [("HOME".to_string(), home)].into(),
            root: false,
            directory: path.join("cwd"),
            system_file: path.join("system.toml"),
        };
        Self {
            dir,
            environment,
            flags: Flags::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.path(name), text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.variables.insert(name.into(), value.into());
        self
    }

    fn flag(mut self, key: &'static str, values: &[&str]) -> Self {
        self.flags
            .settings
            .push((key, values.iter().map(|value| value.to_string()).collect()));
        self
    }

    fn load(&self) -> Config {
        load(&self.environment, &self.flags).unwrap()
    }

    fn refusal(&self) -> String {
        let error = load(&self.environment, &self.flags).unwrap_err();
        let hint = error
            .hint()
            .map(|hint| format!(" ({hint})"))
            .unwrap_or_default();
        format!("{error}{hint}").replace(&format!("{}/", self.dir.path().display()), "")
    }
}

const USER: &str = "home/.config/narfs/config.toml";

#[test]
fn later_layers_win_and_say_so() {
    let machine = Machine::new()
        .file(
            "system.toml",
            "tries = 2\n\nconnections = 2\nread-timeout = '2s'\nquota = '2GiB'",
        )
        .file(
            USER,
            "# mine\nconnections = 3\nread-timeout = 3\nquota = '3GiB'",
        )
        .variable("NARFS_READ_TIMEOUT", "4s")
        .variable("NARFS_QUOTA", "4GiB")
        .flag("quota", &["none"]);
    let config = machine.load();
    assert_eq!(
        (config.tries, config.connections, config.quota),
        (2, 3, Quota::Unlimited)
    );
    assert_eq!(config.read_timeout.as_secs(), 4);
    let system = machine.path("system.toml");
    let user = machine.path(USER);
    assert_eq!(*config.origin("stall-timeout"), Origin::Default);
    assert_eq!(
        *config.origin("tries"),
        Origin::File {
            path: system.clone(),
            line: 1
        }
    );
    assert_eq!(
        *config.origin("connections"),
        Origin::File {
            path: user.clone(),
            line: 2
        }
    );
    assert_eq!(
        *config.origin("read-timeout"),
        Origin::Environment("NARFS_READ_TIMEOUT".into())
    );
    assert_eq!(*config.origin("quota"), Origin::Flag("--quota".into()));
    assert_eq!(config.files, [system, user]);
}

#[test]
fn a_named_file_replaces_the_others_and_has_to_be_there() {
    let mut machine = Machine::new()
        .file("system.toml", "tries = 2")
        .file("own.toml", "connections = 7");
    machine.flags.config = Some(machine.path("own.toml"));
    let config = machine.load();
    assert_eq!((config.tries, config.connections), (5, 7));
    machine.flags.config = None;
    let machine = machine.variable("NARFS_CONFIG", "../own.toml");
    assert_eq!(machine.load().connections, 7);
    let machine = machine.variable("NARFS_CONFIG", "../missing.toml");
    assert_eq!(
        machine.refusal(),
        "the configuration file cwd/../missing.toml cannot be read"
    );
}

#[test]
fn the_state_directory_is_the_users_own() {
    let machine = Machine::new();
    assert_eq!(
        machine.load().state_dir,
        machine.path("home/.local/share/narfs")
    );
    let machine = machine.variable("XDG_DATA_HOME", "/data");
    assert_eq!(machine.load().state_dir, PathBuf::from("/data/narfs"));
    let mut machine = machine.variable("NARFS_STATE_DIR", "here");
    assert_eq!(machine.load().state_dir, machine.path("cwd/here"));
    machine.environment.variables.clear();
    assert!(
        machine.refusal().contains("--state-dir"),
        "{}",
        machine.refusal()
    );
    machine.environment.root = true;
    assert_eq!(machine.load().state_dir, PathBuf::from("/var/lib/narfs"));
}

#[test]
fn paths_in_files_start_at_the_file() {
    let machine = Machine::new().file(USER, "netrc-file = 'netrc'\nstate-dir = '~/state'");
    let config = machine.load();
    assert_eq!(
        config.netrc_file,
        Some(machine.path("home/.config/narfs/netrc"))
    );
    assert_eq!(config.state_dir, machine.path("home/state"));
    let machine = machine.variable("NARFS_NETRC_FILE", "other");
    assert_eq!(machine.load().netrc_file, Some(machine.path("cwd/other")));
}

#[test]
fn caches_are_urls_or_tables() {
    let text = "
        caches = [
            'https://a.example.org',
            { url = 's3://b?region=x', priority = 10, trusted = true, token-file = 'token' },
        ]
    ";
    let machine = Machine::new().file("system.toml", text);
    let [a, b] = &machine.load().caches[..] else {
        panic!()
    };
    assert_eq!(
        (a.url.as_str(), a.priority, a.trusted, &a.token_file),
        ("https://a.example.org/", None, false, &None)
    );
    let token = Some(machine.path("token"));
    assert_eq!(
        (b.url.as_str(), b.priority, b.trusted, &b.token_file),
        ("s3://b?region=x", Some(10), true, &token)
    );

    let tables = "[[caches]]\nurl = 'https://a'\n[[caches]]\nurl = 'https://b'\n";
    assert_eq!(
        Machine::new()
            .file("system.toml", tables)
            .load()
            .caches
            .len(),
        2
    );
    let machine = Machine::new().variable("NARFS_CACHES", "https://a  file:///b");
    assert_eq!(machine.load().caches.len(), 2);
    let machine = machine.flag("caches", &["https://c"]);
    assert_eq!(machine.load().caches[0].url.as_str(), "https://c/");
}

#[test]
fn mistakes_are_named_with_their_place() {
    let refusal = |text: &str| Machine::new().file("system.toml", text).refusal();
    for (text, want) in [
        (
            "\nconections = 3",
            "system.toml:2: \"conections\" is not a key of narfs (did you mean \"connections\"?)",
        ),
        (
            "state_dir = '/x'",
            "system.toml:1: \"state_dir\" is not a key of narfs (did you mean \"state-dir\"?)",
        ),
        (
            "zzz = 1",
            "system.toml:1: \"zzz\" is not a key of narfs (`narfs config` lists every key)",
        ),
        (
            "caches = [\n  { url = 'https://a', prority = 3 },\n]",
            "system.toml:2: \"prority\" is not a key of a cache (did you mean \"priority\"?)",
        ),
        (
            "caches = [\n'https://a',\n'ftp://b']",
            "system.toml:3: caches: \"ftp://b/\": narfs reads http, https, file and s3 caches (caches is a list of URLs or tables; its default is https://cache.nixos.org/)",
        ),
        ("tries = 3\ntries = 4", "system.toml:2:1: duplicate key"),
        (
            "verify = 'never'",
            "system.toml:1: verify: \"never\" is none of stream, before-read (verify is stream or before-read; its default is stream)",
        ),
        (
            "connect-timeout = '0s'",
            "system.toml:1: connect-timeout: a time-out has to be longer than nothing (connect-timeout is a time with a unit (ms, s, m, h, d), or a number of seconds; its default is 15s)",
        ),
        (
            "tries = [3]",
            "system.toml:1: tries: array is of the wrong type (tries is a whole number from 1 to 1000; its default is 5)",
        ),
    ] {
        assert_eq!(refusal(text), want);
    }
}

#[test]
fn wrong_variables_and_flags_are_named_too() {
    let machine = Machine::new().variable("NARFS_TRIES", "many");
    assert!(
        machine
            .refusal()
            .starts_with("$NARFS_TRIES: tries: \"many\""),
        "{}",
        machine.refusal()
    );
    let machine = Machine::new().flag("quota", &["1 parsec"]);
    assert!(
        machine
            .refusal()
            .starts_with("--quota: quota: \"1 parsec\""),
        "{}",
        machine.refusal()
    );
    let machine = Machine::new().flag("quota", &["1", "2"]);
    assert!(
        machine
            .refusal()
            .starts_with("--quota: quota: may be given only once"),
        "{}",
        machine.refusal()
    );
    let machine = Machine::new().variable("NARFS_STATEDIR", "/x");
    let want = "the environment variable NARFS_STATEDIR means nothing to narfs; did you mean NARFS_STATE_DIR?";
    assert_eq!(machine.load().warnings, [want]);
}

const NIX_CONF: &str = "
substituters = https://a.example.org?priority=30 ssh://builder /mnt/store
extra-substituters = https://b.example.org
connect-timeout = 0
stalled-download-timeout = 300
http-connections = 0
download-attempts = 7
require-sigs = false
narinfo-cache-negative-ttl = 0
include more.conf
!include missing.conf
cores = 4
";

#[test]
fn a_nix_conf_is_imported() {
    let machine = Machine::new()
        .file("nix.conf", NIX_CONF)
        .file(
            "more.conf",
            "netrc-file = /etc/nix/netrc\ndownload-attempts = 8\n",
        )
        .flag("nix-conf", &["../nix.conf"]);
    let config = machine.load();
    let urls: Vec<_> = config
        .caches
        .iter()
        .map(|cache| cache.url.as_str())
        .collect();
    assert_eq!(urls, ["https://a.example.org/", "https://b.example.org/"]);
    assert_eq!(config.caches[0].priority, Some(30));
    assert_eq!(
        (config.connections, config.tries, config.require_signatures),
        (1000, 8, false)
    );
    assert_eq!(
        (
            config.connect_timeout.as_secs(),
            config.stall_timeout.as_secs()
        ),
        (15, 300)
    );
    assert!(config.narinfo_ttl_negative.0.is_zero());
    assert_eq!(config.netrc_file, Some("/etc/nix/netrc".into()));
    let more = machine.path("cwd/../more.conf");
    assert_eq!(
        *config.origin("tries"),
        Origin::NixConf {
            path: more,
            line: 2
        }
    );
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(
        config.warnings[0].contains("ssh://builder"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn a_nix_conf_comes_right_before_what_names_it() {
    let nix = "download-attempts = 7\nhttp-connections = 7\nextra-substituters = https://b\n";
    let machine = Machine::new()
        .file("nix.conf", nix)
        .file("system.toml", "tries = 2\nnix-conf = 'nix.conf'");
    let config = machine.load();
    assert_eq!(
        (config.tries, config.connections, config.caches.len()),
        (2, 7, 2)
    );
    // Named by a flag, it wins over files and variables, and other flags win over it.
    let machine = Machine::new()
        .file("nix.conf", nix)
        .file("system.toml", "tries = 2\ncaches = 'https://a'")
        .variable("NARFS_TRIES", "3")
        .flag("connections", &["9"])
        .flag("nix-conf", &["../nix.conf"]);
    let config = machine.load();
    assert_eq!((config.tries, config.connections), (7, 9));
    let urls: Vec<_> = config
        .caches
        .iter()
        .map(|cache| cache.url.as_str())
        .collect();
    assert_eq!(urls, ["https://a/", "https://b/"]);
}

#[test]
fn includes_end() {
    let machine = Machine::new()
        .file("nix.conf", "include nix.conf\n")
        .flag("nix-conf", &["../nix.conf"]);
    assert!(
        machine.refusal().contains("include one another"),
        "{}",
        machine.refusal()
    );
    let machine = Machine::new()
        .file("nix.conf", "include missing\n")
        .flag("nix-conf", &["../nix.conf"]);
    assert!(
        machine.refusal().contains("missing cannot be read"),
        "{}",
        machine.refusal()
    );
}

#[test]
fn what_is_printed_can_be_read_again_and_hides_secrets() {
    let text = "caches = ['https://me:secret@a.example.org/?sig=secret', { url = 'file:///b', priority = 3 }]
        quota = '10GiB'\nverify = 'before-read'\nfuse-threads = 3\nnarinfo-ttl-negative = 0";
    let config = Machine::new().file("system.toml", text).load();
    let shown = Machine::new()
        .file("system.toml", &config.to_toml(Secrets::Shown))
        .load();
    for spec in KEYS {
        assert_eq!(
            shown.value(spec.name, Secrets::Shown),
            config.value(spec.name, Secrets::Shown),
            "{}",
            spec.name
        );
    }
    for printed in [
        config.to_text(),
        config.to_toml(Secrets::Masked),
        config.to_json().to_string(),
        format!("{config:?}"),
    ] {
        assert!(!printed.contains("secret"), "{printed}");
        assert!(printed.contains("a.example.org"), "{printed}");
    }
    Machine::new()
        .file("system.toml", &config.to_toml(Secrets::Masked))
        .load();
}

#[test]
fn json_says_value_origin_and_source() {
    let json = Machine::new().flag("tries", &["3"]).load().to_json();
    assert_eq!(
        json["tries"],
        serde_json::json!({ "value": 3, "origin": "--tries", "source": "flag" })
    );
    assert_eq!(json["netrc-file"]["value"], serde_json::Value::Null);
    assert_eq!(json["caches"]["value"][0]["url"], DEFAULT_CACHE);
}

#[test]
fn a_file_that_never_ends_is_refused() {
    let machine = Machine::new().file("system.toml", &"#".repeat((1 << 20) + 1));
    assert!(
        machine.refusal().contains("larger than"),
        "{}",
        machine.refusal()
    );
}

proptest! {
    /// Errors are fine; panics are bugs. Texts are made of what means something here.
    #[test]
    fn any_text_is_read_or_refused(
        parts in prop::collection::vec(
            prop_oneof![
                Just("caches"), Just("tries"), Just("quota"), Just(" = "), Just("\n"), Just("["), Just("]"), Just("{"),
                Just("}"), Just("url"), Just("'https://a'"), Just("\"\u{e9}\""), Just("3"), Just(","), Just("."),
                Just("#"), Just("include"), Just("priority"), Just("true"), Just("\u{1f600}"),
            ],
            0..40,
        ),
        other: String,
    ) {
        for text in [parts.concat(), other] {
            if let Err(error) = parse_file(&text) {
                prop_assert!(!error.to_string().is_empty());
                error.hint();
            }
            let lines = text.lines().count();
            prop_assert!(parse_nix_conf(&text).iter().all(|setting| (1..=lines).contains(&setting.line)));
            mask_url(&text);
        }
    }

    #[test]
    fn a_password_is_never_shown(
        user in "[a-z@:%?#/]{0,8}", password in "[a-z@:%?#/]{0,8}", host in "[a-z.]{1,8}", rest in "[a-z/?=&#@]{0,12}",
    ) {
        let shown = mask_url(&format!("https://{user}:S3CRET{password}@{host}/{rest}"));
        // A slash or a question mark in front of it makes it part of the path or a parameter's
        // name: such a text holds no password to any reader of URLs.
        let before_path = !user.contains(['/', '?', '#']);
        prop_assert!(!before_path || !shown.contains("S3CRET"), "{}", shown);
    }
}
