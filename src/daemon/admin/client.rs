//! The other end: questions of `narfs top` and `narfs bugreport` to a daemon's admin socket.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

use super::admin_socket;
use crate::failure::{Exit, Failure};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the daemon of one state directory.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// When the system gives no descriptors.
    pub fn new(state_dir: &std::path::Path) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(Exit::System, "the runtime can't be started").because(&e))?;
        Ok(Self {
            socket: admin_socket(state_dir),
            runtime,
        })
    }

    /// What a route answers.
    ///
    /// # Errors
    /// When no daemon answers, or not with a success.
    pub fn get(&self, route: &str) -> Result<Bytes, Failure> {
        let asked = async { timeout(PATIENCE, self.ask(route)).await };
        let asked = self.runtime.block_on(asked);
        let failed = |e: &dyn std::error::Error| {
            let what = format!("no daemon answers at {}", self.socket.display());
            Failure::new(Exit::Unavailable, what)
                .because(e)
                .hint("one runs while something is mounted; --state-dir says which is meant")
        };
        match asked {
            Ok(Ok((StatusCode::OK, body))) => Ok(body),
            Ok(Ok((status, body))) => {
                let text = String::from_utf8_lossy(&body);
                let what = format!("{route}: {status}: {}", text.trim());
                Err(Failure::new(Exit::Unavailable, what))
            }
            Ok(Err(e)) => Err(failed(&e)),
            Err(e) => Err(failed(&e)),
        }
    }

    /// The JSON document that a route answers.
    ///
    /// # Errors
    /// As [`Client::get`]; when it is another document.
    pub fn json<T: serde::de::DeserializeOwned>(&self, route: &str) -> Result<T, Failure> {
        serde_json::from_slice(&self.get(route)?).map_err(|e| {
            let what = format!("{route}: the daemon answers in another form");
            Failure::new(Exit::Unavailable, what)
                .because(&e)
                .hint("is it of another version? `narfs status` says")
        })
    }

    async fn ask(&self, route: &str) -> io::Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let request = Request::get(route)
            .header(HOST, "narfs")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        // Its errors come out of the answer as well.
        let connection = tokio::spawn(connection);
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        let answer = answer.await.map_err(io::Error::other);
        connection.abort();
        answer
    }
}
