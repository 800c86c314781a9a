//! Whether it lives, and whether what it serves answers.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
};

use crate::store::Store;

/// This program, even where an update has replaced or removed its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// How long an answer may take: all answer from memory, on a machine that may be busy.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A client's preface and empty settings, as HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Type of the frame that a server begins with, and where it stands in the frame's head.
const SETTINGS: (usize, u8) = (3, 4);

/// Something that has to answer for a daemon to be ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// The mount there, to a question that no cache of the kernel answers.
    Mount(PathBuf),
    /// The gRPC server at this socket, with the first words of HTTP/2.
    Grpc(PathBuf),
}

/// Whether the store's runtime takes on work.
pub(super) async fn live(store: &Store) -> Result<(), String> {
    let done = store.runtime().spawn(async {});
    match tokio::time::timeout(ANSWERS_WITHIN, done).await {
        Ok(_) => Ok(()),
        Err(_) => Err("its tasks do not get on".into()),
    }
}

/// Whether everything answers; else what does not.
pub(super) async fn ready(checks: &[Check], store: &Store) -> Result<(), String> {
    live(store).await?;
    answers(checks).await
}

/// Whether all of these answer; else which does not.
pub(crate) async fn answers(checks: &[Check]) -> Result<(), String> {
    let all = checks.iter().map(|check| async move {
        match check {
            Check::Mount(at) => mount(at).await,
            Check::Grpc(at) => socket(at).await,
        }
    });
    let outcomes = futures_util::future::join_all(all).await;
    outcomes.into_iter().collect()
}

/// Asked by another process: one that is killed while it waits for its own mount is never gone,
/// and neither is the mount.
async fn mount(at: &Path) -> Result<(), String> {
    let shown = at.display();
    let failed = |e: &dyn std::fmt::Display| format!("the mount {shown}: {e}");
    let mut asking = Command::new(OWN_PROGRAM);
    asking.arg0("narfs").arg("probe-mount").arg(at);
    asking.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(ANSWERS_WITHIN, asking.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(e)) => Err(failed(&e)),
        Err(_) => Err(failed(&"it does not answer")),
    }
}

async fn socket(at: &Path) -> Result<(), String> {
    let asked = async {
        let mut stream = UnixStream::connect(at).await?;
        stream.write_all(PREFACE).await?;
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        Ok::<_, std::io::Error>(head[SETTINGS.0] == SETTINGS.1)
    };
    match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Err(e)) => Err(format!("the socket {}: {e}", at.display())),
        _ => Err(format!("the socket {} does not answer", at.display())),
    }
}
