//! `narfs containerd-config`: what containerd has to be told to use narfs.
//!
//! The texts are pure functions, and `deploy/containerd/` holds them as they are without any flag.
//! What they rest on was tried with containerd 1.6, 1.7 and 2.1, `tests/containerd_config.rs` does
//! it again:
//!
//! - 1.x replaces the section of a plugin by that of an imported file, whole. 2.x merges sections,
//!   but only those of files of version 3.
//! - A list replaces a list. Without an entry for overlayfs, the transfer service refuses to unpack
//!   for it.
//! - 1.6 has no transfer service and no exports of proxy plugins, and overlooks both.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Exit, Failure, output};

/// Where the snapshotter listens, if nothing else is said.
const ADDRESS: &str = "/run/narfs/snapshotter.sock";
/// Where the snapshotter keeps its state, if nothing else is said.
const ROOT: &str = "/var/lib/narfs";
/// The name of containerd's own configuration.
const MAIN: &str = "/etc/containerd/config.toml";
/// The files that it should import.
const DROP_INS: &str = "/etc/containerd/conf.d/*.toml";
/// The CRI plugin, as 1.x calls it.
const CRI_1: &str = "io.containerd.grpc.v1.cri";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

const LONG: &str = "\
Prints the configuration with which containerd uses `narfs snapshotter`, for the containerd that is \
installed. Changes nothing.

The output is a file for /etc/containerd/conf.d/, which /etc/containerd/config.toml has to import. \
What stands in the way there is said on standard error: nothing that containerd was told before \
should be lost.";

const AFTER: &str = "\
Exit status:
  0  printed
  2  the command line or the configuration is wrong
  6  there is no containerd to ask for its version

Examples:
  # narfs containerd-config > /etc/containerd/conf.d/narfs.toml
  $ narfs containerd-config --version 2
  $ narfs containerd-config --version 1.7 --cri";

/// Arguments of `narfs containerd-config`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Print the configuration with which containerd uses narfs", long_about = LONG, after_long_help = AFTER)]
pub struct ContainerdConfigArgs {
    /// The version of containerd, 1.7 or 2 for example [default: that of `containerd --version`]
    #[arg(long, value_name = "VERSION", value_parser = Generation::parse)]
    pub version: Option<Generation>,

    /// The socket that `narfs snapshotter` listens at
    #[arg(long, value_name = "SOCKET", default_value = ADDRESS, value_parser = parse_absolute)]
    pub address: PathBuf,

    /// The directory that `narfs snapshotter` keeps its state in
    #[arg(long, value_name = "DIR", default_value = ROOT, value_parser = parse_absolute)]
    pub root: PathBuf,

    /// For 1.x: the section of the CRI plugin too, in force. It replaces all that config.toml says
    /// of this plugin; paste it there if that says something
    #[arg(long)]
    pub cri: bool,

    /// The containerd configuration to look at for what stands in the way
    #[arg(long, value_name = "FILE", default_value = MAIN)]
    pub main: PathBuf,
}

/// Versions of containerd that are configured alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// 1.6 and 1.7, with configurations of version 2.
    One,
    /// 2.x, with configurations of version 3.
    Two,
}

impl Generation {
    /// Reads `1`, `1.7`, `v2.1.0`, `1.6.20~ds1`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('v').unwrap_or(text);
        let digits = number.split(|c: char| !c.is_ascii_digit());
        let numbers: Vec<u32> = digits.map_while(|d| d.parse().ok()).collect();
        match numbers[..] {
            [1] => Ok(Self::One),
            [1, minor, ..] if minor >= 4 => Ok(Self::One),
            [1, ..] => Err("containerd before 1.4 is not supported".into()),
            [major, ..] if major >= 2 => Ok(Self::Two),
            _ => Err("write a version of containerd such as 1.7 or 2".into()),
        }
    }

    /// What `containerd --version` says: `containerd github.com/… 1.6.20~ds1 1.6.20~ds1-1`.
    fn of_output(text: &str) -> Option<Self> {
        let versions = text.split_whitespace().filter(|word| {
            let number = word.strip_prefix('v').unwrap_or(word);
            number.starts_with(|c: char| c.is_ascii_digit()) && number.contains('.')
        });
        versions.map(Self::parse).find_map(Result::ok)
    }

    /// Asks the one that is installed.
    fn installed() -> Result<Self, Failure> {
        let hint = "name its version, as in --version 2";
        let output = Command::new("containerd")
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let output = output.map_err(|e| {
            Failure::new(Exit::System, "`containerd --version` cannot be run")
                .because(&e)
                .hint(hint)
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::of_output(&text).ok_or_else(|| {
            let what = format!("`containerd --version` says nothing of a version: {text:?}");
            Failure::new(Exit::System, what).hint(hint)
        })
    }
}

fn parse_absolute(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err("write an absolute path".into()),
    }
}

/// Prints.
///
/// # Errors
/// When the version is neither given nor to be found out.
pub fn run(args: &ContainerdConfigArgs) -> Result<(), Failure> {
    let generation = match args.version {
        Some(generation) => generation,
        None => Generation::installed()?,
    };
    let main = match std::fs::read_to_string(&args.main) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            tracing::warn!("{} cannot be read: {e}", args.main.display());
            None
        }
    };
    if let Some(text) = main {
        for note in notes(generation, args.cri, &text) {
            tracing::warn!("{}: {note}", args.main.display());
        }
    }
    output::print(&snippet(generation, &args.address, &args.root, args.cri))
}

/// The configuration.
fn snippet(generation: Generation, address: &Path, root: &Path, cri: bool) -> String {
    let string = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let (address, root) = (string(address), string(root));
    let (head, cri) = match (generation, cri) {
        (Generation::One, false) => (HEAD_1, commented(CRI_TEXT_1)),
        (Generation::One, true) => (HEAD_1, CRI_TEXT_1.to_owned()),
        (Generation::Two, _) => (HEAD_2, CRI_TEXT_2.to_owned()),
    };
    let why = match generation {
        Generation::One => CRI_WHY_1,
        Generation::Two => CRI_WHY_2,
    };
    format!("{head}\n{}\n{why}{cri}", proxy(&address, &root))
}

fn commented(text: &str) -> String {
    text.lines().map(|line| format!("# {line}\n")).collect()
}

const HEAD_1: &str = r#"# narfs for containerd 1.6 and 1.7, as `narfs containerd-config --version 1` prints it.
#
# Its place is /etc/containerd/conf.d/narfs.toml; /etc/containerd/config.toml has to begin with
#
#   version = 2
#   imports = ["/etc/containerd/conf.d/*.toml"]
#
# Restart containerd then. `containerd config dump` shows what is in effect.

version = 2
"#;

const HEAD_2: &str = r#"# narfs for containerd 2.x, as `narfs containerd-config --version 2` prints it.
#
# Its place is /etc/containerd/conf.d/narfs.toml; /etc/containerd/config.toml has to begin with
#
#   version = 3
#   imports = ["/etc/containerd/conf.d/*.toml"]
#
# If it is of version 2, what it says of CRI is lost when this file is imported: first have
# `containerd config migrate` print it as one of version 3. Restart containerd then.
# `containerd config dump` shows what is in effect.

version = 3
"#;

fn proxy(address: &str, root: &str) -> String {
    format!(
        r#"[proxy_plugins.narfs]
  type = "snapshot"
  address = {address}

  # From containerd 1.7 on: where the disk that images take is measured, and that labels are wanted.
  [proxy_plugins.narfs.exports]
    root = {root}
    enable_remote_snapshot_annotations = "true"

# From containerd 1.7 on: for whom the transfer service unpacks. The list replaces the one that
# containerd begins with, so overlayfs stands in it as well.
[[plugins."{TRANSFER}".unpack_config]]
  platform = "linux"
  snapshotter = "narfs"

[[plugins."{TRANSFER}".unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
"#
    )
}

const CRI_WHY_1: &str = "\
# Kubernetes: every pod of the node on narfs, also those of ordinary images. containerd 1.x replaces
# the section of a plugin by that of an imported file, whole (a sandbox_image or SystemdCgroup in
# config.toml would be lost), so these lines belong into config.toml itself. Only where that has no
# section of this plugin may they stand here.
";

const CRI_TEXT_1: &str = r#"[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "narfs"
  disable_snapshot_annotations = false
"#;

const CRI_WHY_2: &str = "\
# Kubernetes: every pod of the node on narfs, also those of ordinary images.
";

const CRI_TEXT_2: &str = r#"[plugins."io.containerd.cri.v1.images"]
  snapshotter = "narfs"
  disable_snapshot_annotations = false
"#;

/// What stands in the way of a drop-in in containerd's own configuration.
fn notes(generation: Generation, cri: bool, main: &str) -> Vec<String> {
    let main: toml::Table = match main.parse() {
        Ok(main) => main,
        Err(e) => {
            return vec![format!(
                "containerd cannot understand it either: {}",
                e.message()
            )];
        }
    };
    let mut notes = Vec::new();
    let version = main.get("version").and_then(toml::Value::as_integer);
    let version = version.unwrap_or(1);
    match generation {
        Generation::One if version < 2 => {
            notes.push("it is of version 1; bring it to version 2 first, see `containerd config dump`".into());
        }
        Generation::Two if version < 3 => notes.push(format!(
            "it is of version {version}, and what it says of CRI would be lost; `containerd config migrate` \
             prints it as one of version 3"
        )),
        Generation::One | Generation::Two => {}
    }
    if !main.contains_key("imports") {
        notes.push(format!(
            "it imports nothing; add the line imports = [\"{DROP_INS}\"] near its beginning"
        ));
    }
    let plugins = main.get("plugins").and_then(toml::Value::as_table);
    let plugin = |name: &str| plugins.and_then(|plugins| plugins.get(name));
    if generation == Generation::One && cri && plugin(CRI_1).is_some() {
        notes.push(format!(
            "its section [plugins.\"{CRI_1}\"] would be lost to the one that is printed; paste that there, and leave \
             --cri out of the drop-in"
        ));
    }
    if plugin(TRANSFER).is_some_and(|transfer| transfer.get("unpack_config").is_some()) {
        notes.push(format!(
            "its unpack_config of [plugins.\"{TRANSFER}\"] would be lost; add its entries to those that are printed"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_written() {
        for (text, want) in [
            ("1", Generation::One),
            ("1.6", Generation::One),
            ("v1.7.24", Generation::One),
            ("1.6.20~ds1-1+deb12u3", Generation::One),
            ("2", Generation::Two),
            ("v2.1.0-rc.1", Generation::Two),
            ("10.2", Generation::Two),
        ] {
            assert_eq!(Generation::parse(text), Ok(want), "{text}");
        }
        for text in ["", "v", "0.9", "1.3.9", "latest", "-1"] {
            assert!(Generation::parse(text).is_err(), "{text}");
        }
        for (text, want) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n",
                Generation::One,
            ),
            (
                "containerd github.com/containerd/containerd v1.7.24 8bf84409\n",
                Generation::One,
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown \n",
                Generation::Two,
            ),
        ] {
            assert_eq!(Generation::of_output(text), Some(want), "{text}");
        }
        assert_eq!(Generation::of_output("containerd (devel)"), None);
    }

    #[test]
    fn every_text_is_toml_and_says_what_was_asked_for() {
        let odd = Path::new("/run/a \"b\"\\.sock");
        for (generation, cri) in [
            (Generation::One, false),
            (Generation::One, true),
            (Generation::Two, false),
        ] {
            let text = snippet(generation, odd, Path::new("/r"), cri);
            let parsed: toml::Table = text.parse().unwrap();
            let narfs = &parsed["proxy_plugins"]["narfs"];
            assert_eq!(narfs["address"].as_str(), odd.to_str());
            assert_eq!(narfs["exports"]["root"].as_str(), Some("/r"));
            let plugins = parsed["plugins"].as_table().unwrap();
            assert_eq!(plugins.contains_key(CRI_1), cri);
            assert_eq!(
                plugins.contains_key("io.containerd.cri.v1.images"),
                generation == Generation::Two
            );
            assert!(
                text.contains("snapshotter = \"narfs\"\n")
                    && text.contains("disable_snapshot_annotations = false")
            );
            assert!(text.lines().all(|line| line.chars().count() <= 100));
        }
    }

    #[test]
    fn what_would_be_lost_is_said() {
        let good = "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";
        let cri = "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n";
        let unpack =
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nsnapshotter = \"x\"\n";
        let three = good.replace('2', "3");
        for (generation, with_cri, text, want) in [
            (Generation::One, false, good.to_owned(), &[][..]),
            (Generation::One, false, format!("{good}{cri}"), &[]),
            (
                Generation::One,
                true,
                format!("{good}{cri}"),
                &["would be lost to the one"],
            ),
            (
                Generation::One,
                false,
                format!("{good}{unpack}"),
                &["unpack_config"],
            ),
            (
                Generation::One,
                false,
                String::new(),
                &["version 1", "imports nothing"],
            ),
            (Generation::Two, false, good.to_owned(), &["of version 2"]),
            (Generation::Two, false, three.clone(), &[]),
            (
                Generation::Two,
                false,
                format!("{three}{unpack}"),
                &["unpack_config"],
            ),
            (Generation::Two, false, "= 1".into(), &["cannot understand"]),
        ] {
            let notes = notes(generation, with_cri, &text);
            let fits =
                notes.len() == want.len() && notes.iter().zip(want).all(|(n, w)| n.contains(w));
            assert!(fits, "{text}: {notes:?}");
        }
    }
}
