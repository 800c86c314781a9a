//! Versions and configuration.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::corpus;

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one that the machine's distribution has: 1.6 in Debian 12.
    Installed,
    /// 1.7
    V1_7,
    /// 2.x
    V2,
}

impl Version {
    pub const ALL: [Self; 3] = [Self::Installed, Self::V1_7, Self::V2];

    /// Where its programs are, none if on the `PATH`.
    fn programs(self) -> Option<PathBuf> {
        let name = match self {
            Self::Installed => return None,
            Self::V1_7 => "containerd-1.7",
            Self::V2 => "containerd-2",
        };
        let directory = corpus::directory().join(name);
        let found = directory.join("containerd").exists();
        assert!(found, "no {}: run tests/setup", directory.display());
        Some(directory)
    }

    /// One of its programs, with its shim on the `PATH`.
    pub(super) fn command(self, program: &str) -> Command {
        let Some(directory) = self.programs() else {
            return Command::new(program);
        };
        let mut command = Command::new(directory.join(program));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", directory.display()));
        command
    }

    /// What `narfs containerd-config --version` calls it.
    pub fn generation(self) -> &'static str {
        match self {
            Self::Installed | Self::V1_7 => "1",
            Self::V2 => "2",
        }
    }

    /// Flags that have `ctr images import` use the transfer service; none where there is none.
    pub fn import_by_transfer(self) -> Option<&'static str> {
        match self {
            Self::Installed => None,
            Self::V1_7 | Self::V2 => Some("--local=false"),
        }
    }
}

/// How a containerd is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub(super) version: Version,
    /// What the configuration imports.
    pub(super) drop_in: String,
    /// The snapshotter of the CRI plugin, and the image of a pod's sandbox.
    cri: Option<(String, String)>,
}

impl Setup {
    pub fn new(version: Version) -> Self {
        Self {
            version,
            drop_in: String::new(),
            cri: None,
        }
    }

    /// With a file that the configuration imports, as what `narfs containerd-config` prints.
    pub fn drop_in(mut self, text: &str) -> Self {
        text.clone_into(&mut self.drop_in);
        self
    }

    /// With the CRI plugin.
    pub fn cri(mut self, snapshotter: &str, sandbox_image: &str) -> Self {
        self.cri = Some((snapshotter.to_owned(), sandbox_image.to_owned()));
        self
    }

    pub(super) fn configuration(&self, directory: &Path) -> String {
        let cri = self.cri_configuration(directory);
        let mut disabled = DISABLED.to_vec();
        if self.cri.is_none() {
            disabled.extend(CRI_PLUGINS);
        }
        let version = if self.version == Version::V2 { 3 } else { 2 };
        let directory = directory.display();
        format!(
            r#"version = {version}
imports = ["{directory}/conf.d/*.toml"]
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = {disabled:?}
[grpc]
  address = "{directory}/containerd.sock"
[ttrpc]
  address = "{directory}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
{cri}"#
        )
    }

    fn cri_configuration(&self, directory: &Path) -> String {
        let Some((snapshotter, sandbox)) = &self.cri else {
            return String::new();
        };
        let directory = directory.display();
        if self.version == Version::V2 {
            return format!(
                r#"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{directory}/cni/bin"]
    conf_dir = "{directory}/cni/conf"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"#
            );
        }
        format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{directory}/cni/bin"
    conf_dir = "{directory}/cni/conf"
"#
        )
    }
}

/// The node resource interface listens at a fixed place, which another containerd may hold.
const DISABLED: [&str; 1] = ["io.containerd.nri.v1.nri"];

/// The CRI, of 1.x and of 2.x; names of plugins that are not there disable nothing.
const CRI_PLUGINS: [&str; 3] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
];

/// What images and containerd call this machine's architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => panic!("no name for the architecture {other} is known here"),
    }
}
