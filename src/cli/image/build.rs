//! `narfs image build`: an image of a closure, without Nix and without its bytes.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::super::{
    Exit, Failure,
    output::{self as print, Terminal, human},
    parse_store_path,
};
use super::{
    gather::{Contents, Gather},
    output::Output,
};
use crate::{
    config::Config,
    daemon::scratch::with_scratch_store,
    image::{
        self, Base, Below, Digest, Image, ImageError, Platform, Recipe, Reference, Scheme,
        Settings, root_entries,
    },
    nix::StorePath,
    store::{Description, Store},
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

/// What `--json` prints.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Result_<'a> {
    name: String,
    digest: Digest,
    config: Digest,
    platform: String,
    file: &'a Path,
    size: u64,
    store_paths: usize,
    nar_size: u64,
}

/// What was made.
struct Made {
    image: Image,
    platform: Platform,
    size: u64,
    store_paths: usize,
    nar_size: u64,
}

/// Sets its flag when it goes: whoever waits for a thread tells it so to stop.
struct StopWith(Arc<AtomicBool>);

impl Drop for StopWith {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Builds.
///
/// # Errors
/// When a path can't be had, the image could not work, or can't be written.
pub fn run(config: &Config, args: &BuildArgs) -> Result<(), Failure> {
    let scheme = scheme(args)?;
    let output = Output::at(&args.output)?;
    if args.json && matches!(output, Output::Stdout) {
        let what = "--json and the image itself cannot both go to standard output";
        return Err(Failure::new(Exit::Usage, what).hint("name a file with --output"));
    }
    let terminal = Terminal::of_stderr(config.color);
    let made = with_scratch_store(config, async |store| {
        make(store, args, scheme, output, terminal).await
    })?;
    if args.output == Path::new("-") {
        return Ok(());
    }
    let terminal = Terminal::of_stdout(config.color);
    print::print(&text(&made, args, &terminal)?)
}

fn scheme(args: &BuildArgs) -> Result<Scheme, Failure> {
    let name = match (args.scheme, &args.closure_info) {
        (None, None) => SchemeName::StorePaths,
        (None, Some(_)) => SchemeName::Closure,
        (Some(name), _) => name,
    };
    let refused = |what: &str, hint: &str| Err(Failure::new(Exit::Usage, what).hint(hint));
    match (name, &args.closure_info) {
        (SchemeName::Closure | SchemeName::Both, None) => refused(
            "this scheme names the store paths by a closure-info, and none was given",
            "give one with --closure-info: a store path that Nix builds, with `pkgs.closureInfo { rootPaths = [ … ]; }`, \
             and that is in a cache; without Nix, use --scheme store-paths",
        ),
        (SchemeName::StorePaths, Some(_)) => refused(
            "--scheme store-paths has no place for a closure-info",
            "use --scheme closure or both, or leave --closure-info out",
        ),
        (name, info) => Ok(Scheme {
            store_paths: name != SchemeName::Closure,
            closure: info.clone(),
        }),
    }
}

async fn make(
    store: &Store,
    args: &BuildArgs,
    scheme: Scheme,
    output: Output,
    terminal: Terminal,
) -> Result<Made, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let _stop = StopWith(stop.clone());
    let (base, below) = base(args).await?;
    let platform = args.platform.clone();
    let platform = platform.or_else(|| base.as_ref().map(|base| base.platform.clone()));
    let platform = platform.unwrap_or_else(Platform::of_this_machine);
    let gather = Gather {
        store,
        terminal,
        quiet: args.quiet,
    };
    let closure = closure(&gather, args).await?;
    let paths: HashSet<_> = closure
        .iter()
        .map(|d| d.narinfo.store_path.clone())
        .collect();
    let mut copies = Vec::new();
    for path in &args.copy_to_root {
        copies.push(gather.copy_to_root(path).await?);
    }
    let nothing = Below::default();
    let root = root_entries(&copies, below.as_ref().unwrap_or(&nothing)).map_err(failure)?;
    let settings = settings(args);
    let contents = Contents {
        closure: &paths,
        root: &root,
        base: base.as_ref().map(|_| below.as_ref()),
    };
    let program = image::program(base.as_ref(), &settings, &platform);
    contents.check(store, &program).await?;
    let recipe = Recipe {
        name: args.name.clone(),
        platform: platform.clone(),
        mountpoints: gather.mountpoints(&closure).await?,
        base,
        scheme,
        root,
        settings,
    };
    let (image, size) = blocking(move || {
        let image = image::build(recipe).map_err(failure)?;
        let size = output.write(|out| image.write(out, &stop).map_err(failure))?;
        Ok((image, size))
    })
    .await?;
    Ok(Made {
        image,
        platform,
        size,
        store_paths: closure.len(),
        nar_size: closure.iter().map(|d| d.narinfo.nar_size).sum(),
    })
}

/// Work on files, beside the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(Exit::Failure, "a thread died; this is a bug")),
    }
}

/// The base, and its directories where links have to find their places among them.
async fn base(args: &BuildArgs) -> Result<(Option<Base>, Option<Below>), Failure> {
    let Some(path) = args.from.clone() else {
        return Ok((None, None));
    };
    let (platform, look) = (args.platform.clone(), !args.copy_to_root.is_empty());
    blocking(move || {
        let base = Base::open(&path, platform.as_ref()).map_err(failure)?;
        let below = look.then(|| base.below()).transpose().map_err(failure)?;
        Ok((Some(base), below))
    })
    .await
}

async fn closure(gather: &Gather<'_>, args: &BuildArgs) -> Result<Vec<Description>, Failure> {
    let roots = || args.closure.iter().chain(&args.copy_to_root);
    let Some(info) = &args.closure_info else {
        return gather.closure(&roots().cloned().collect::<Vec<_>>()).await;
    };
    let closure = gather.closure_of_info(info).await?;
    let has = |path: &StorePath| closure.iter().any(|d| d.narinfo.store_path == *path);
    match roots().find(|path| !has(path)) {
        None => Ok(closure),
        Some(path) => {
            let what = format!(
                "{} is not among the paths of {}",
                path.absolute(),
                info.absolute()
            );
            let hint = "build the closure-info anew, with this path among its rootPaths";
            Err(Failure::new(Exit::Usage, what).hint(hint))
        }
    }
}

fn settings(args: &BuildArgs) -> Settings {
    Settings {
        entrypoint: args.entrypoint.clone(),
        cmd: args.cmd.clone(),
        env: args.env.clone(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        labels: args.label.iter().cloned().collect::<BTreeMap<_, _>>(),
    }
}

fn failure(error: ImageError) -> Failure {
    let exit = match error {
        ImageError::Stopped => Exit::Interrupted,
        ImageError::Root { .. } => Exit::Usage,
        ImageError::Read { .. }
        | ImageError::Base { .. }
        | ImageError::Damaged { .. }
        | ImageError::Write(_)
        | ImageError::Json(_)
        | ImageError::Specification(_) => Exit::Failure,
    };
    Failure::from_error(exit, &error)
}

fn text(made: &Made, args: &BuildArgs, terminal: &Terminal) -> Result<String, Failure> {
    let Made { image, size, .. } = made;
    let name = image.name.to_string();
    if args.json {
        let result = Result_ {
            name,
            digest: image.digest,
            config: image.config,
            platform: made.platform.to_string(),
            file: &args.output,
            size: *size,
            store_paths: made.store_paths,
            nar_size: made.nar_size,
        };
        return print::json(&result, terminal.width.is_some());
    }
    if terminal.width.is_none() {
        let Image { digest, .. } = image;
        return Ok(format!("{name}\t{digest}\t{size}\t{}\n", made.store_paths));
    }
    Ok(format!(
        "{name}\n  digest      {}\n  platform    {}\n  size        {}, in {}\n  store paths {}, {} when all of them are fetched\n",
        image.digest,
        made.platform,
        human::bytes(*size),
        args.output.display(),
        made.store_paths,
        human::bytes(made.nar_size),
    ))
}
