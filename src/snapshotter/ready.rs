//! Whether it works: `GET /ready` and `GET /live` on a socket in the state directory, for probes.
//!
//! Ready means that both answer: the mount, to a question that no cache of the kernel answers, and
//! containerd's socket, with the first words of HTTP/2.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    sync::mpsc,
};

/// This program, even where an update has replaced or removed its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Name of the socket in the state directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// How long an answer may take: both answer from memory, on a machine that may be busy.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A client's preface and empty settings, as HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Type of the frame that a server begins with, and where it stands in the frame's head.
const SETTINGS: (usize, u8) = (3, 4);

/// What has to answer.
#[derive(Debug)]
pub struct Probe {
    /// Where the store is mounted.
    pub mountpoint: PathBuf,
    /// containerd's socket.
    pub socket: PathBuf,
}

impl Probe {
    /// Whether both answer.
    ///
    /// # Errors
    /// With what does not.
    pub async fn ready(&self) -> Result<(), String> {
        let (mount, socket) = tokio::join!(self.mount(), self.socket());
        mount.and(socket)
    }

    /// Asked by another process: one that is killed while it waits for its own mount is never gone,
    /// and neither is the mount.
    async fn mount(&self) -> Result<(), String> {
        let shown = self.mountpoint.display();
        let failed = |e: &dyn std::fmt::Display| format!("the mount {shown}: {e}");
        let mut asking = Command::new(OWN_PROGRAM);
        asking
            .arg0("narfs")
            .arg("probe-mount")
            .arg(&self.mountpoint);
        asking.stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(ANSWERS_WITHIN, asking.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Ok(Err(e)) => Err(failed(&e)),
            Err(_) => Err(failed(&"it does not answer")),
        }
    }

    async fn socket(&self) -> Result<(), String> {
        let asked = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(PREFACE).await?;
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            Ok::<_, std::io::Error>(head[SETTINGS.0] == SETTINGS.1)
        };
        match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Err(e)) => Err(format!("the socket {}: {e}", self.socket.display())),
            _ => Err(format!(
                "the socket {} does not answer",
                self.socket.display()
            )),
        }
    }
}

/// Answers probes until the task is dropped.
pub async fn serve(
    probe: Arc<Probe>,
    mut connections: mpsc::Receiver<std::io::Result<UnixStream>>,
) {
    while let Some(Ok(stream)) = connections.recv().await {
        let probe = probe.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let probe = probe.clone();
                async move { Ok::<_, Infallible>(answer(&probe, request.uri().path()).await) }
            });
            // Who goes away in the middle does not want to know.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn answer(probe: &Probe, path: &str) -> Response<Full<Bytes>> {
    let (status, text) = match path {
        "/live" => (StatusCode::OK, "live\n".into()),
        "/ready" => match probe.ready().await {
            Ok(()) => (StatusCode::OK, "ready\n".into()),
            Err(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {why}\n"),
            ),
        },
        _ => (StatusCode::NOT_FOUND, "there are /ready and /live\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

/// Where probes ask.
pub fn admin_socket(state_dir: &Path) -> PathBuf {
    state_dir.join(ADMIN_SOCKET)
}
