//! The `narfs` program: read the command line, load the configuration, start logging, act.

use std::process::ExitCode;

use clap::Parser;
use narfs::{
    cli::{self, Cli, Command, Exit, Failure},
    config::{self, Environment},
};

fn main() -> ExitCode {
    // Before there is a second thread, and with arguments that are its own.
    if let Some(status) = cli::mount_helper::run_if_called() {
        return status;
    }
    let cli = Cli::parse();
    match run(&cli) {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    // No mistake in a configuration may be in the way of these two.
    match &cli.command {
        Command::KeepMount(args) => return done(cli::keep_mount::run(args)),
        Command::ProbeMount(args) => return done(cli::probe_mount::run(args)),
        _ => {}
    }
    let config = config::load(&Environment::of_process()?, &cli.settings.0)?;
    let confined = match &cli.command {
        Command::Daemon(args) => cli::daemon::confine(&config, args),
        _ => None,
    };
    cli::log::init(&config, cli.command.serves())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    done(match &cli.command {
        Command::Config(args) => cli::config::run(&config, args),
        Command::Mount(args) => cli::mount::run(&config, &cli.settings.0, args),
        Command::Demo(args) => cli::demo::run(&config, args),
        Command::KeepMount(args) => cli::keep_mount::run(args),
        Command::Daemon(args) => cli::daemon::run(&config, args, confined),
        Command::Run(args) => cli::run::run(&config, &cli.settings.0, args),
        // Its arguments are not ours; handled above.
        Command::MountHelper(_) => Ok(()),
        Command::Upgrade(args) => cli::upgrade::run(&config, args),
        Command::Umount(args) => cli::umount::run(args),
        Command::Snapshotter(args) => cli::snapshotter::run(&config, args),
        Command::Status(args) => cli::status::run(&config, args),
        Command::Bugreport(args) => cli::bugreport::run(&config, args),
        // It ends as the program ended.
        Command::Trace(args) => return cli::trace::run(&config, &cli.settings.0, args),
        Command::Top(args) => cli::top::run(&config, args),
        Command::Prefetch(args) => cli::prefetch::run(&config, args),
        Command::Ls(args) => cli::ls::run(&config, args),
        Command::Cat(args) => cli::cat::run(&config, args),
        Command::PathInfo(args) => cli::path_info::run(&config, args),
        Command::Check(args) => cli::check::run(&config, args),
        Command::Gc(args) => cli::gc::run(&config, args),
        Command::Pin(args) => cli::pin::run(&config, args),
        Command::Unpin(args) => cli::pin::undo(&config, args),
        Command::Profile(args) => cli::profile::run(&config, args),
        Command::ContainerdConfig(args) => cli::containerd_config::run(args),
        Command::ProbeMount(args) => cli::probe_mount::run(args),
        Command::Image(args) => cli::image::run(&config, args),
        Command::Publish(args) => cli::publish::run(&config, args),
    })
}

fn done(outcome: Result<(), Failure>) -> Result<ExitCode, Failure> {
    outcome.map(|()| Exit::Success.into())
}
