//! `narfs publish`: a closure written into a cache.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use narfs_state_schema::{PathState, PathStatus, percent};

use super::{
    Exit, Failure,
    output::{self as print, Terminal, human, progress},
    parse, parse_store_path,
};
use crate::{
    config::{CacheConfig, Config, mask_url},
    daemon::{
        scratch::{scratch_directory, with_scratch_store},
        store_failure, substituter_at,
    },
    nix::{SigningKey, StorePath},
    profile::Profile,
    publish::{
        self as work, LocalStore, Outcome, PublishError, Report, Settings, Size, State, Supplier,
        Target,
    },
};

const LONG: &str = "\
Writes store paths and everything they refer to into a binary cache: a directory, a bucket, or a \
web server that takes PUT. Every Nix since 2.4 reads it as any other cache. narfs reads it down to \
the chunk: the NARs are packed in frames that are cut where files end, and a signed index beside \
each says what is in which chunk, so that a reader fetches what he touches, gets no byte that was \
not checked, and fetches nothing that he has already under another path.

The paths come from another cache (checked as narfs checks everything: --trusted-key, \
--require-signatures) or from a Nix store of this machine, whose `nix` is asked what they refer to. \
Signatures that they have are kept, and one by --secret-key is added.

What is in the cache already is not written again, so a run that was interrupted is repeated to go \
on. The cache is valid at every moment: a path appears in it when all of its files are there and \
everything it refers to. Several may publish into one cache at once.";

const AFTER: &str = "\
The secret key:
  A file with NAME:BASE64, as `nix key generate-secret --key-name NAME` or
  `nix-store --generate-binary-cache-key` write it. Readers trust the public half of it.

Exit status:
  0  everything is in the cache
  1  something could not be written; what could is there, and the next run goes on from it
  2  the command line or the configuration is wrong
  3  a path cannot be found where it is to come from
  4  a path has no trusted signature, or its bytes are not what was promised
  5  one of the caches cannot be reached or did not answer in time
  130  interrupted

Examples:
  $ narfs publish --from https://cache.nixos.org --to file:///srv/cache --secret-key key.sec \\
      /nix/store/HASH-python3-3.11.9
  $ narfs publish --from /nix/store --to 's3://bucket?region=eu-west-1' --secret-key key.sec ./result/
  $ narfs publish --dry-run --since /nix/store/OLD-app-1.0 --from /nix/store --to https://cache.example.org \\
      --secret-key key.sec /nix/store/NEW-app-1.1";

/// Arguments of `narfs publish`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Write a closure into a cache that narfs reads by the chunk", long_about = LONG, after_long_help = AFTER)]
pub struct PublishArgs {
    /// What to publish, with everything it refers to
    #[arg(value_name = "STOREPATH", required = true, value_parser = parse_store_path)]
    pub roots: Vec<StorePath>,

    /// Where the paths are: the URL of a cache, or a Nix store's directory such as /nix/store
    #[arg(long, value_name = "URL|DIRECTORY")]
    pub from: String,

    /// The cache to write into: file://, s3://, http:// or https://. In a place without a
    /// nix-cache-info a cache is made
    #[arg(long, value_name = "URL")]
    pub to: String,

    /// The file with the key that signs
    #[arg(long, value_name = "FILE")]
    pub secret_key: PathBuf,

    /// Fetch and pack, but write nothing; say what would be written and how much of it readers
    /// have already
    #[arg(long)]
    pub dry_run: bool,

    /// A path of the cache that readers have already, such as the version before: what its closure
    /// shares with this one is said to be saved. May be repeated
    #[arg(long, value_name = "STOREPATH", value_parser = parse_store_path)]
    pub since: Vec<StorePath>,

    /// A file with what a start of one of the paths read, which readers will fetch first; see
    /// `narfs profile export`. May be repeated
    #[arg(long, value_name = "FILE")]
    pub profile: Vec<PathBuf>,

    /// Paths that are worked on at a time [default: as many as there are processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,

    /// Level of zstd: higher ones pack smaller and take longer
    #[arg(long, value_name = "LEVEL", default_value_t = 14, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub level: i32,

    /// Bytes of a chunk, unpacked, from 16KiB to 4MiB
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = parse_size)]
    pub chunk_size: u64,

    /// Priority of a cache that is made; lower ones are asked first
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub priority: u32,

    /// Print one JSON object that says what became of each path
    #[arg(long)]
    pub json: bool,

    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = parse::size(text)?;
    match Size::new(bytes) {
        Some(_) => Ok(bytes),
        None => Err("a chunk has from 16KiB to 4MiB".into()),
    }
}

/// Longest name of a key, in bytes: chunk indexes have one byte for its length.
const LONGEST_KEY_NAME: usize = 255;

/// The profiles in these files, each of one of the paths.
fn profiles(files: &[PathBuf], roots: &[StorePath]) -> Result<Vec<Profile>, Failure> {
    let one = |file: &PathBuf| {
        let profile = super::profile::read(file)?;
        match roots.contains(&profile.root) {
            true => Ok(profile),
            false => {
                let (file, root) = (file.display(), profile.root.absolute());
                let what = format!("{file} is the profile of {root}, which is not published");
                Err(Failure::new(Exit::Usage, what).hint("name that path too"))
            }
        }
    };
    files.iter().map(one).collect()
}

/// Publishes.
///
/// # Errors
/// The first thing that could not be done, and how many others.
pub fn run(config: &Config, args: &PublishArgs) -> Result<(), Failure> {
    let key = secret_key(&args.secret_key)?;
    let profiles = profiles(&args.profile, &args.roots)?;
    let to = cache(config, &args.to, "--to")?;
    let mut config = config.clone();
    let local = local_store(&args.from);
    config.caches = match &local {
        Some(_) => Vec::new(),
        None => vec![cache(&config, &args.from, "--from")?],
    };
    let target = substituter_at(&config, &to)?;
    let name = target.name().to_owned();
    let target = Target::new(target, key).map_err(|e| Failure::from_error(Exit::Usage, &e))?;
    let settings = Settings {
        size: Size::new(args.chunk_size).unwrap_or(Size::USUAL),
        level: args.level,
        jobs: args.jobs.map_or_else(processors, usize::from),
        dry_run: args.dry_run,
        tries: config.tries,
    };
    let terminal = Terminal::of_stderr(config.color);
    let scratch = scratch_directory()?;
    let report = with_scratch_store(&config, async |store| {
        let from = match local {
            Some(local) => Supplier::Local(local),
            None => Supplier::Caches(store.clone()),
        };
        let mut bars = progress::Progress::new(&terminal, args.quiet);
        let mut last = Vec::new();
        let tell = |paths: &[work::Progress]| {
            last = paths.iter().map(status).collect();
            bars.update(Instant::now(), &last);
        };
        let request = work::Request {
            from: &from,
            roots: &args.roots,
            earlier: &args.since,
            profiles: &profiles,
            target,
            priority: args.priority,
            settings,
            scratch: scratch.path(),
        };
        let outcome = work::publish(request, tell).await;
        bars.finish(&last);
        outcome.map_err(|error| failure(&error))
    })?;
    let terminal = Terminal::of_stdout(config.color);
    print::print(&text(&report, &name, args, &terminal)?)?;
    failed(&report)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn secret_key(file: &Path) -> Result<SigningKey, Failure> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| {
        Failure::new(
            Exit::Usage,
            format!("the secret key {shown} cannot be read"),
        )
        .because(&e)
        .hint("make one with `nix key generate-secret --key-name NAME`")
    })?;
    let key = SigningKey::parse(&text).map_err(|e| {
        Failure::new(Exit::Usage, format!("{shown} holds no secret key"))
            .because(&e)
            .hint("it has to be the secret half, as `nix key generate-secret` writes it")
    })?;
    match key.name().len() {
        0..=LONGEST_KEY_NAME => Ok(key),
        _ => Err(Failure::new(
            Exit::Usage,
            format!("the name of the key in {shown} has more than {LONGEST_KEY_NAME} bytes"),
        )),
    }
}

/// A cache by its URL, with what the configuration says of it.
fn cache(config: &Config, url: &str, flag: &str) -> Result<CacheConfig, Failure> {
    let cache = CacheConfig::parse(url).map_err(|why| {
        let failure = Failure::new(Exit::Usage, format!("{flag} {}: {why}", mask_url(url)));
        match url.starts_with('/') {
            true => failure.hint(format!("a cache in a directory is file://{url}")),
            false => failure,
        }
    })?;
    let known = config.caches.iter().find(|known| known.url == cache.url);
    Ok(known.cloned().unwrap_or(cache))
}

fn local_store(from: &str) -> Option<LocalStore> {
    from.starts_with('/')
        .then(|| LocalStore::at(Path::new(from)))?
}

/// A path as the bars know it.
fn status(path: &work::Progress) -> PathStatus {
    PathStatus {
        digest: path.nar_hash.to_string(),
        size: path.nar_size,
        fetched_size: path.done,
        fetched_percent: percent(path.done, path.nar_size),
        error: (path.state == State::Failed).then(|| "not published".into()),
        store_path: path.path.absolute(),
        state: match path.state {
            State::Waiting => PathState::Known,
            State::Working => PathState::Fetching,
            State::Done => PathState::Complete,
            State::Failed => PathState::Partial,
        },
        verified: path.state == State::Done,
        files: None,
        entries: None,
        substituter: None,
        compression: None,
        first_seen: None,
        last_fetched: None,
        last_error: None,
    }
}

fn failure(error: &PublishError) -> Failure {
    let exit = match error {
        PublishError::Source(error) => return store_failure(error),
        PublishError::Damaged { .. } => Exit::Untrusted,
        PublishError::Target { error: cause, .. } | PublishError::Cache(cause) => {
            let exit = match cause.failure().retryable() {
                true => Exit::Unavailable,
                false => Exit::Failure,
            };
            let hint = "what was written stays, and the cache is valid; run it again to go on";
            return Failure::from_error(exit, error).hint(hint);
        }
        PublishError::Foreign { .. } | PublishError::Nix { .. } => Exit::Usage,
        PublishError::File { .. }
        | PublishError::Conflict { .. }
        | PublishError::Unreadable { .. }
        | PublishError::HeldBack { .. }
        | PublishError::Circle { .. }
        | PublishError::Died { .. } => Exit::Failure,
    };
    Failure::from_error(exit, error)
}

fn failed(report: &Report) -> Result<(), Failure> {
    let errors: Vec<&PublishError> = report
        .iter()
        .filter_map(|p| p.outcome.as_ref().err())
        .collect();
    // What was held back follows from something else.
    let first = errors
        .iter()
        .find(|e| !matches!(e, PublishError::HeldBack { .. }));
    let Some(first) = first.or(errors.first()) else {
        return Ok(());
    };
    let mut failure = failure(first);
    if errors.len() > 1 {
        let others = human::count(errors.len() as u64 - 1, "other path");
        failure
            .causes
            .push(format!("{others} could not be published either"));
    }
    Err(failure)
}

/// What `--json` prints.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    to: &'a str,
    dry_run: bool,
    paths: usize,
    written: usize,
    present: usize,
    failed: usize,
    nar_size: u64,
    file_size: u64,
    chunks: u64,
    shared_size: u64,
    store_paths: Vec<JsonPath>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonPath {
    path: String,
    outcome: &'static str,
    nar_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn summary<'a>(report: &Report, to: &'a str, dry_run: bool) -> Json<'a> {
    let mut sum = Json {
        to,
        dry_run,
        paths: report.len(),
        written: 0,
        present: 0,
        failed: 0,
        nar_size: 0,
        file_size: 0,
        chunks: 0,
        shared_size: 0,
        store_paths: Vec::new(),
    };
    for path in report {
        let mut line = JsonPath {
            path: path.path.absolute(),
            outcome: "present",
            nar_size: path.nar_size,
            file_size: None,
            chunks: None,
            shared_size: None,
            error: None,
        };
        match &path.outcome {
            Ok(Outcome::Present) => sum.present += 1,
            Ok(Outcome::Written {
                file_size,
                chunks,
                shared,
            }) => {
                sum.written += 1;
                sum.nar_size += path.nar_size;
                sum.file_size += file_size;
                sum.chunks += chunks;
                sum.shared_size += shared;
                line.outcome = "written";
                (line.file_size, line.chunks, line.shared_size) =
                    (Some(*file_size), Some(*chunks), Some(*shared));
            }
            Err(error) => {
                sum.failed += 1;
                line.outcome = "failed";
                line.error = Some(error.to_string());
            }
        }
        sum.store_paths.push(line);
    }
    sum
}

fn text(
    report: &Report,
    to: &str,
    args: &PublishArgs,
    terminal: &Terminal,
) -> Result<String, Failure> {
    let sum = summary(report, to, args.dry_run);
    if args.json {
        return print::json(&sum, terminal.width.is_some());
    }
    if terminal.width.is_none() {
        let columns = |line: &JsonPath| {
            let size = line
                .file_size
                .map_or_else(|| "-".into(), |size| size.to_string());
            format!(
                "{}\t{}\t{}\t{size}\n",
                line.outcome, line.path, line.nar_size
            )
        };
        return Ok(sum.store_paths.iter().map(columns).collect());
    }
    let wrote = if args.dry_run { "would write" } else { "wrote" };
    let mut text = format!(
        "{wrote} {} of {} to {}, {} there already\n",
        sum.written,
        human::count(sum.paths as u64, "path"),
        print::printable(to),
        sum.present,
    );
    text.push_str(&format!(
        "  {} unpacked, {} packed, in {}\n",
        human::bytes(sum.nar_size),
        human::bytes(sum.file_size),
        human::count(sum.chunks, "chunk"),
    ));
    if sum.shared_size > 0 || !args.since.is_empty() {
        let whose = match args.since.is_empty() {
            true => "equal to one before it",
            false => "equal to one before it or of --since",
        };
        text.push_str(&format!(
            "  {} packed in chunks {whose}: not fetched again by narfs\n",
            human::bytes(sum.shared_size)
        ));
    }
    if sum.failed > 0 {
        text.push_str(&format!(
            "  {} not published\n",
            human::count(sum.failed as u64, "path")
        ));
    }
    Ok(text)
}
