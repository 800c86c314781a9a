//! The command line of `narfs image build`.

use std::path::PathBuf;

use super::super::parse_store_path;
use crate::{
    image::{Platform, Reference},
    nix::StorePath,
};

const LONG: &str = "\
Makes a container image of store paths and everything that they refer to, as an OCI archive. \
Fetches narinfos and listings from the caches and no archives: the image holds an empty mountpoint \
for each store path, and annotations that tell a snapshotter what belongs there. It has the format of \
nix-snapshotter, and runs with `narfs snapshotter` and with that.

The same image has the same bytes, whenever and wherever it is made. Import it with `ctr images \
import`; to push it to a registry, `skopeo copy oci-archive:image.tar docker://…` does.

Nothing but the store paths is in the image: no shell, no /tmp, no /etc. --copy-to-root links a store \
path's files at the root, --from puts an ordinary image below.";

const AFTER: &str = "\
Annotations (--scheme):
  store-paths   one for each store path. Needs nothing; every nix-snapshotter reads it
  closure       one for all, with the store path of a closure-info (--closure-info): a directory with
                a file `store-paths`, which Nix builds with `pkgs.closureInfo { rootPaths = [ … ]; }`
                and which has to be in a cache. nix-snapshotter reads it from 0.3 on
  both          both of them

Exit status:
  0  written
  1  the base cannot be used, or the image cannot be written
  2  the command line or the configuration is wrong: the program is not in the image, for one
  3  no cache has one of the paths, or there is no such program in it
  4  one of the paths has no trusted signature
  5  no cache can be reached or answered in time
  130  interrupted

Examples:
  $ narfs image build --name python:3.11 --closure /nix/store/HASH-python3-3.11.9 \\
      --entrypoint /nix/store/HASH-python3-3.11.9/bin/python3 -o python.tar
  # ctr images import --snapshotter narfs python.tar
  # ctr run --rm --snapshotter narfs docker.io/library/python:3.11 py \\
      /nix/store/HASH-python3-3.11.9/bin/python3 -V

  A program with arguments, on top of an image that has a shell, straight into containerd:
  $ narfs image build --name redis:7 --from debian.tar --closure /nix/store/HASH-redis-7.2.4 \\
      --entrypoint /nix/store/HASH-redis-7.2.4/bin/redis-server --cmd --save --cmd '' -o - |
      ctr images import --snapshotter narfs -";

/// Arguments of `narfs image build`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Make a container image of store paths, without Nix and without their bytes", long_about = LONG, after_long_help = AFTER)]
pub struct BuildArgs {
    /// Name of the image: `[HOST/]PATH[:TAG]`. What is left out is filled in as docker does
    #[arg(long, short, value_name = "NAME", value_parser = Reference::parse)]
    pub name: Reference,

    /// A store path that the image has, with everything it refers to. May be repeated
    #[arg(long, short, value_name = "STOREPATH", value_parser = parse_store_path,
          required_unless_present_any = ["closure_info", "copy_to_root"])]
    pub closure: Vec<StorePath>,

    /// Where the archive goes; - for standard output. An existing file is replaced at once, when
    /// all of it is written
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,

    /// What a container runs: the program, then its first arguments. Once for each word
    #[arg(long, short, value_name = "WORD", allow_hyphen_values = true)]
    pub entrypoint: Vec<String>,

    /// Arguments behind the entrypoint, which users may replace (`args` of Kubernetes). Once for
    /// each word
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub cmd: Vec<String>,

    /// A variable. May be repeated. Where PATH is not set, runtimes set their usual one
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,

    /// Working directory, absolute
    #[arg(long, value_name = "DIR", value_parser = parse_workdir)]
    pub workdir: Option<String>,

    /// Who the container runs as: `USER[:GROUP]`. By number, unless the image has an /etc/passwd
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    pub user: Option<String>,

    /// A label. May be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,

    /// A store path whose files are linked at the same places below /, as copyToRoot of
    /// nix-snapshotter does; it is brought too. May be repeated
    #[arg(long, value_name = "STOREPATH", value_parser = parse_store_path)]
    pub copy_to_root: Vec<StorePath>,

    /// An image to go below: an archive of OCI's or of `docker save`
    #[arg(long, value_name = "ARCHIVE")]
    pub from: Option<PathBuf>,

    /// For which machines the image is [default: the base's, else this one]
    #[arg(long, value_name = "linux/ARCH", value_parser = Platform::parse)]
    pub platform: Option<Platform>,

    /// How the image names its store paths [default: store-paths; closure with --closure-info]
    #[arg(long, value_name = "SCHEME", hide_possible_values = true)]
    pub scheme: Option<SchemeName>,

    /// The closure-info whose paths the image has
    #[arg(long, value_name = "STOREPATH", value_parser = parse_store_path)]
    pub closure_info: Option<StorePath>,

    /// Print one JSON object that says what was made
    #[arg(long)]
    pub json: bool,

    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Names of the schemes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs, reason = "clap would print comments here")]
pub enum SchemeName {
    StorePaths,
    Closure,
    Both,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=VALUE".into()),
    }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.contains('\0') {
        true => Err("a variable cannot hold the character 0".into()),
        false => parse_pair(text),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    parse_pair(text)
}

fn parse_workdir(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err("write an absolute path".into()),
    }
}

fn parse_user(text: &str) -> Result<String, String> {
    let parts: Vec<_> = text.split(':').collect();
    let fine = |part: &&str| !part.is_empty() && !part.contains(char::is_whitespace);
    match parts.len() <= 2 && parts.iter().all(fine) {
        true => Ok(text.into()),
        false => Err("write USER or USER:GROUP, each a number or a name".into()),
    }
}
