//! `narfs image build`: an image of a closure, without Nix and without its bytes.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::super::{
    Exit, Failure,
    output::{self as print, Terminal, human},
};
use super::{
    args::{BuildArgs, SchemeName},
    gather::{Contents, Gather},
    output::Output,
};
use crate::{
    config::Config,
    daemon::scratch::with_scratch_store,
    image::{
        self, Base, Below, Digest, Image, ImageError, Platform, Recipe, Scheme, Settings,
        root_entries,
    },
    nix::StorePath,
    store::{Description, Store},
};

/// What `--json` prints.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
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
    if let Some(user) = &settings.user
        && base.is_none()
        && !user.split(':').all(|part| part.parse::<u32>().is_ok())
        && !root.contains_key(&b"etc/passwd"[..])
    {
        tracing::warn!(
            "the image has no /etc/passwd that says who {user} is; containers will not start as him"
        );
    }
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
        let result = Report {
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
