//! `narfs path-info`: what the caches say of a store path.

use super::{
    Failure,
    output::{self, Terminal, human, printable},
    parse_store_path,
};
use crate::{
    config::Config,
    daemon::{scratch::with_scratch_store, store_failure},
    nix::{StorePath, Trust},
    store::{Description, StoreError},
};

const LONG: &str = "\
Prints what the caches say of store paths: sizes packed and unpacked, hash, references, signatures \
and whether they are trusted, which cache it is and how it packs. Fetches narinfos only.

On a terminal it is a paragraph for each path, with --closure a table; otherwise columns with tabs \
between them: store path, bytes unpacked, bytes packed (- if the cache does not say), compression, \
trust (the key that signed it, content-addressed, trusted-cache or untrusted), cache.

What the caches do have is printed also if they do not have all.";

const AFTER: &str = "\
Exit status:
  0  printed
  2  the command line or the configuration is wrong
  3  no cache has one of the paths
  4  one of the paths has no trusted signature; it is printed all the same
  5  no cache can be reached or answered in time
  130  interrupted

Examples:
  $ narfs path-info /nix/store/HASH-hello-2.12.1
  $ narfs path-info --closure --json /nix/store/HASH-hello-2.12.1 | jq 'map(.narSize) | add'";

/// Arguments of `narfs path-info`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Print what the caches say of store paths", long_about = LONG, after_long_help = AFTER)]
pub struct PathInfoArgs {
    /// The store paths
    #[arg(value_name = "STOREPATH", required = true, value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,

    /// Also everything that they refer to, directly or through others; a table with totals
    #[arg(long, short)]
    pub closure: bool,

    /// Print a JSON list with an object for each path
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints of a path, with the names that Nix uses where it has one.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    path: String,
    nar_hash: String,
    nar_size: u64,
    references: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deriver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<&'a str>,
    signatures: Vec<String>,
    trust: String,
    substituter: &'a str,
    url: &'a str,
    compression: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
}

impl<'a> Line<'a> {
    fn of(description: &'a Description) -> Self {
        let narinfo = &description.narinfo;
        Self {
            path: narinfo.store_path.absolute(),
            nar_hash: narinfo.nar_hash.to_string(),
            nar_size: narinfo.nar_size,
            references: narinfo.references.iter().map(StorePath::absolute).collect(),
            deriver: narinfo.deriver.as_ref().map(StorePath::absolute),
            ca: narinfo.ca.as_deref(),
            signatures: narinfo.signatures.iter().map(ToString::to_string).collect(),
            trust: trust(description),
            substituter: &description.substituter,
            url: &narinfo.url,
            compression: narinfo.compression.as_str(),
            file_hash: narinfo.file_hash.as_ref().map(ToString::to_string),
            file_size: narinfo.file_size,
        }
    }

    fn columns(&self) -> String {
        let packed = self
            .file_size
            .map_or_else(|| "-".into(), |size| size.to_string());
        format!(
            "{}\t{}\t{packed}\t{}\t{}\t{}\n",
            self.path, self.nar_size, self.compression, self.trust, self.substituter
        )
    }

    fn paragraph(&self) -> String {
        let packed = self
            .file_size
            .map_or_else(|| "unknown".into(), human::bytes);
        let mut text = format!("{}\n", self.path);
        let mut field = |name: &str, value: &str| {
            text.push_str(&format!("  {name:<11} {}\n", printable(value)))
        };
        field("unpacked", &human::bytes(self.nar_size));
        field("packed", &format!("{packed}, {}", self.compression));
        field("NAR hash", &self.nar_hash);
        field("cache", self.substituter);
        field("URL", self.url);
        field("trust", &self.trust);
        self.signatures
            .iter()
            .for_each(|signature| field("signature", signature));
        self.ca.iter().for_each(|ca| field("content", ca));
        self.deriver
            .iter()
            .for_each(|deriver| field("deriver", deriver));
        self.references
            .iter()
            .for_each(|reference| field("refers to", reference));
        text
    }
}

fn trust(description: &Description) -> String {
    match &description.trust {
        Trust::Signed { key } => key.clone(),
        Trust::ContentAddressed => "content-addressed".into(),
        Trust::Untrusted if description.waived => "trusted-cache".into(),
        Trust::Untrusted => "untrusted".into(),
    }
}

/// Prints.
///
/// # Errors
/// When a path can't be had, or is not trusted; the others are printed.
pub fn run(config: &Config, args: &PathInfoArgs) -> Result<(), Failure> {
    let answers = with_scratch_store(config, async |store| {
        Ok(match args.closure {
            true => store.describe_closure(&args.paths).await,
            false => {
                let one = async |path: &StorePath| (path.clone(), store.describe(path).await);
                futures_util::future::join_all(args.paths.iter().map(one)).await
            }
        })
    })?;
    let known: Vec<&Description> = answers
        .iter()
        .filter_map(|(_, answer)| answer.as_ref().ok())
        .collect();
    let terminal = Terminal::of_stdout(config.color);
    output::print(&text(&known, args, &terminal)?)?;
    let failed: Vec<&StoreError> = answers
        .iter()
        .filter_map(|(_, answer)| answer.as_ref().err())
        .collect();
    if let Some((first, others)) = failed.split_first() {
        let mut failure = store_failure(first);
        if !others.is_empty() {
            failure.causes.push(format!(
                "{} failed too",
                human::count(others.len() as u64, "other path")
            ));
        }
        return Err(failure);
    }
    match known.iter().find(|description| !description.served()) {
        None => Ok(()),
        Some(description) => {
            let error = StoreError::Untrusted {
                path: description.narinfo.store_path.clone(),
                substituter: description.substituter.clone(),
            };
            Err(store_failure(&error))
        }
    }
}

fn text(
    known: &[&Description],
    args: &PathInfoArgs,
    terminal: &Terminal,
) -> Result<String, Failure> {
    let lines: Vec<Line<'_>> = known
        .iter()
        .map(|description| Line::of(description))
        .collect();
    if args.json {
        return output::json(&lines, terminal.width.is_some());
    }
    if terminal.width.is_none() {
        return Ok(lines.iter().map(Line::columns).collect());
    }
    if !args.closure {
        return Ok(lines
            .iter()
            .map(Line::paragraph)
            .collect::<Vec<_>>()
            .join("\n"));
    }
    let mut text = String::new();
    for line in &lines {
        let packed = line.file_size.map_or_else(|| "?".into(), human::bytes);
        let trust = match line.trust.as_str() {
            "untrusted" => terminal.paint(31, "  untrusted"),
            _ => String::new(),
        };
        text.push_str(&format!(
            "{:>10}  {packed:>10}  {}{trust}\n",
            human::bytes(line.nar_size),
            line.path
        ));
    }
    text.push_str(&format!(
        "\n{}, {} unpacked, {} packed\n",
        human::count(lines.len() as u64, "path"),
        human::bytes(lines.iter().map(|line| line.nar_size).sum()),
        human::bytes(lines.iter().filter_map(|line| line.file_size).sum())
    ));
    Ok(text)
}
