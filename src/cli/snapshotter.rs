//! `narfs snapshotter`: containers from the lazy store, for containerd.

use std::path::PathBuf;

use super::Failure;
use crate::{
    config::Config,
    snapshotter::{Serve, serve},
};

const LONG: &str = "\
Serves containerd as a proxy snapshotter: images made by nix-snapshotter or `narfs image build` \
start at once, with the bytes of their closures fetched when they are read; other images are \
unpacked and run as the overlayfs snapshotter does it.

It mounts the store once for the whole machine, in ROOT/mnt, and gives each Nix layer a view of \
its closure. Preparing a layer asks the caches for all of its store paths, and fails there if one \
can't be had. Snapshots outlast restarts.

containerd finds it by a proxy plugin in its configuration:

  [proxy_plugins.narfs]
    type = \"snapshot\"
    address = \"/run/narfs/snapshotter.sock\"

It is ready when both the mount and the socket answer: it says so to systemd (Type=notify), and \
to GET /ready over HTTP on ROOT/admin.sock. SIGTERM ends it and leaves the mount; the next one \
goes on where it was.";

const AFTER: &str = "\
Exit status:
  0  ended by a signal, or because the store was unmounted
  1  failed for a reason that none of the others names; a damaged database of snapshots is one
  2  the command line or the configuration is wrong
  5  another process uses the root directory, or answers at the socket
  6  no /dev/fuse, no privilege, or a file can't be made

Files:
  ROOT/snapshots.redb   what is known of each snapshot
  ROOT/snapshots/       what containers and ordinary layers hold
  ROOT/mnt              the mounted store; views/ in it has a directory for each Nix layer
  ROOT/admin.sock       GET /ready, /live, /metrics, /status.json and /debug/inflight
  ROOT/control.sock     for narfs status, prefetch and gc with --state-dir ROOT

Examples:
  # narfs snapshotter
  # narfs snapshotter --cache https://cache.example.org --trusted-key example-1:BASE64
  # narfs snapshotter --address /run/test/narfs.sock --root /var/tmp/narfs
  # curl --unix-socket /var/lib/narfs/admin.sock http://narfs/ready
  # ctr plugins ls id==narfs
  # narfs status --state-dir /var/lib/narfs";

/// Where containerd connects to.
const ADDRESS: &str = "/run/narfs/snapshotter.sock";

/// Arguments of `narfs snapshotter`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Serve containerd as a snapshotter", long_about = LONG, after_long_help = AFTER)]
pub struct SnapshotterArgs {
    /// The socket for containerd; its directory is made if it is missing
    #[arg(long, value_name = "SOCKET", default_value = ADDRESS)]
    pub address: PathBuf,

    /// The directory for snapshots and for everything else that narfs keeps [default: the
    /// --state-dir, which for root is /var/lib/narfs]
    #[arg(long, value_name = "DIRECTORY")]
    pub root: Option<PathBuf>,

    /// Take a layer for a Nix layer only if its labels say so, not when all it has in /nix/store
    /// are empty mountpoints
    ///
    /// Some clients, `ctr images import` of containerd 1.6 among them, do not pass the labels on;
    /// with this flag their Nix images have an empty store. Without it, an ordinary layer whose
    /// store paths are all empty needs a cache that has them.
    #[arg(long)]
    pub no_detect_nix_layers: bool,
}

/// Serves until it is told to end.
///
/// # Errors
/// What kept it from serving.
pub fn run(config: &Config, args: &SnapshotterArgs) -> Result<(), Failure> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let mut config = config.clone();
    if let Some(root) = &args.root {
        config.state_dir = absolute(root);
    }
    let what = Serve {
        address: absolute(&args.address),
        detect: !args.no_detect_nix_layers,
    };
    serve(&config, &what)
}
