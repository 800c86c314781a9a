//! `narfs demo`: a cache, a slow link, a mount and a program, all in one process and gone with it.
//!
//! ```text
//! closure.rs   what is packed: this program (elf.rs), its libraries, data
//! pack.rs      ──▶ a binary cache in memory
//! serve.rs     ──▶ on the loopback interface, behind a slow link
//! stage.rs     ──▶ a store, mounted in a namespace of this process; the program that runs from it
//! report.rs    the figures
//! ```

mod closure;
mod elf;
mod pack;
mod report;
mod serve;
mod stage;

use std::{
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

pub use report::Figures;

use self::{
    closure::Closure,
    pack::Cache,
    report::PathFigures,
    serve::Link,
    stage::{Ending, Stage},
};
use crate::{
    cli::{
        Exit, Failure,
        demo::DemoArgs,
        output::{self, Terminal, human, progress::Progress},
    },
    config::Color,
    daemon::{
        namespace, runtime,
        scratch::{Signals, scratch_directory},
    },
    nix::SigningKey,
};

/// How long what is under way may hold up the end.
const END: Duration = Duration::from_secs(5);
/// Between two pictures of the progress.
const PICTURE: Duration = Duration::from_millis(50);

/// Shows it, and leaves nothing behind.
///
/// # Errors
/// What kept it from being shown; what was not right.
pub fn show(args: &DemoArgs, color: Color) -> Result<(), Failure> {
    // First of all: a process with threads can't do that.
    namespace::enter()?;
    let runtime = runtime()?;
    let mut signals = Signals::catch(&runtime)?;
    let dir = scratch_directory()?;
    let ending = Ending::default();
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = perform(args, color, dir.path(), &ending) => outcome,
            () = signals.any() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        }
    });
    ending.begin();
    runtime.shutdown_timeout(END);
    ending.wait(END);
    if let Err(error) = dir.close() {
        tracing::warn!(%error, "a temporary directory could not be removed");
    }
    outcome
}

async fn perform(
    args: &DemoArgs,
    color: Color,
    dir: &Path,
    ending: &Ending,
) -> Result<(), Failure> {
    let say = |name: &str, text: String| match args.json {
        true => Ok(()),
        false => output::print(&format!("{name:<12}{text}\n")),
    };
    let key =
        SigningKey::generate("narfs-demo-1").map_err(|e| Failure::from_error(Exit::Failure, &e))?;
    let public_key = key.public();
    let (scratch, stop) = (dir.join("pack"), ending.begun.clone());
    let packed = tokio::task::spawn_blocking(move || pack(&scratch, &key, &stop)).await;
    let (cache, closure) = packed
        .unwrap_or_else(|e| Err(std::io::Error::other(e)))
        .map_err(|e| {
            Failure::new(
                Exit::Failure,
                "this program and its libraries can't be packed",
            )
            .because(&e)
        })?;
    let (size, file_size) = (cache.size(), cache.file_size());
    say(
        "packed",
        format!(
            "this program, {}, and data: {}, {}, {} compressed",
            human::count(closure.libraries.len() as u64, "library")
                .replace("librarys", "libraries"),
            human::count(cache.packed.len() as u64, "store path"),
            human::bytes(size),
            human::bytes(file_size)
        ),
    )?;

    let link = Arc::new(Link::new(args.rtt, args.mbit));
    let cache = Arc::new(cache);
    let failed = |e: std::io::Error| {
        Failure::new(Exit::System, "the loopback interface can't be listened on").because(&e)
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .map_err(failed)?;
    let url = serve::url(listener.local_addr().map_err(failed)?);
    tokio::spawn(serve::serve(listener, cache.clone(), link.clone()));
    let limit = if args.mbit > 0.0 {
        format!("{} Mbit/s", args.mbit)
    } else {
        "no limit of speed".into()
    };
    say(
        "serving",
        format!(
            "{url}, behind a round trip of {} and {limit}",
            human::duration(args.rtt)
        ),
    )?;

    let stage = Stage::set(dir, &url, &public_key, ending).await?;
    say(
        "mounted",
        format!(
            "{}, for this process and its children only",
            stage.mountpoint().display()
        ),
    )?;
    say(
        "running",
        format!("{} from there", closure.program.display()),
    )?;

    let begun = Instant::now();
    let first = stage.first_byte(&closure).await?;
    let mut progress = Progress::new(&Terminal::of_stderr(color), args.json);
    let said = watch(&stage, &closure, &mut progress).await;
    let exit = begun.elapsed();
    let (summary, paths) = stage.store().whole_status();
    progress.finish(&paths);
    let said = said?;
    if said.trim_end() != closure.data_digest {
        let what = format!(
            "the program read something else than was packed: {}",
            output::printable(&said)
        );
        return Err(Failure::new(Exit::Failure, what));
    }

    let fetched = |path: &crate::nix::StorePath| {
        let found = paths
            .iter()
            .find(|status| status.store_path == path.absolute());
        found.map_or(0, |status| status.fetched_size)
    };
    let each = cache.packed.iter().map(|packed| PathFigures {
        store_path: packed.path.absolute(),
        size: packed.nar_size,
        file_size: packed.file_size,
        fetched_size: fetched(&packed.path),
    });
    let each: Vec<_> = each.collect();
    let figures = Figures {
        program: format!("{}/bin/narfs", closure.root.absolute()),
        store_paths: each.len(),
        store_paths_touched: each.iter().filter(|path| path.fetched_size > 0).count(),
        closure_size: size,
        closure_file_size: file_size,
        bytes_fetched: summary.substituters.iter().map(|s| s.bytes_received).sum(),
        requests: summary.substituters.iter().map(|s| s.requests).sum(),
        time_to_first_byte_ms: millis(first),
        time_to_exit_ms: millis(exit),
        whole_closure_ms: millis(link.time_for(file_size)),
        rtt_ms: millis(args.rtt),
        mbit: args.mbit,
        paths: each,
    };
    stage.strike();
    output::print(&match args.json {
        true => output::json(&figures, true)?,
        false => figures.to_text(&summary, &paths, &Terminal::of_stdout(color)),
    })
}

/// Runs the program, and shows meanwhile what comes; what the program said.
async fn watch(
    stage: &Stage,
    closure: &Closure,
    progress: &mut Progress,
) -> Result<String, Failure> {
    let mut tick = tokio::time::interval(PICTURE);
    let program = stage.run(closure);
    tokio::pin!(program);
    loop {
        tokio::select! {
            said = &mut program => return said,
            _ = tick.tick() => progress.update(Instant::now(), &stage.store().whole_status().1),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn pack(scratch: &Path, key: &SigningKey, stop: &AtomicBool) -> std::io::Result<(Cache, Closure)> {
    std::fs::create_dir(scratch)?;
    let closure = closure::collect()?;
    let mut cache = Cache::new();
    for package in &closure.packages {
        if stop.load(Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        cache.add(package, scratch, key)?;
    }
    Ok((cache, closure))
}

/// What the program does that the demonstration runs: it reads a file and says its digest.
///
/// # Errors
/// When it can't be read.
pub fn read(file: &Path) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map_err(|e| {
        Failure::new(Exit::Failure, format!("{} can't be read", file.display())).because(&e)
    })?;
    output::print(&format!(
        "{}\n",
        data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes))
    ))
}
