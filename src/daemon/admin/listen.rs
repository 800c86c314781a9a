//! The sockets of the admin endpoint.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixStream},
    sync::{Semaphore, mpsc},
};

use super::{Office, routes};

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients that are served at a time; further ones wait.
const CLIENTS: usize = 32;
/// How long until an address that could not be had is tried again: a process that ends has it
/// yet, mostly.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long not to accept after a failure: out of descriptors, most likely.
const BREATHE: Duration = Duration::from_millis(100);

/// Answers on the socket in the state directory.
pub(super) async fn unix(
    office: &Arc<Office>,
    mut connections: mpsc::Receiver<io::Result<UnixStream>>,
) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    while let Some(Ok(stream)) = connections.recv().await {
        serve(office, stream, &places, false).await;
    }
}

/// Answers on a loopback address, if there is one, for ever.
pub(super) async fn loopback(office: &Arc<Office>, address: Option<SocketAddr>) {
    let Some(address) = address else {
        return std::future::pending().await;
    };
    let places = Arc::new(Semaphore::new(CLIENTS));
    let listener = bind(address).await;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve(office, stream, &places, true).await,
            Err(error) => {
                tracing::warn!(%error, "an admin client could not be accepted");
                tokio::time::sleep(BREATHE).await;
            }
        }
    }
}

/// Not having metrics is no reason not to serve a mount: tried until it works.
async fn bind(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                tracing::info!(%address, "metrics-listen: answering");
                return listener;
            }
            Err(error) if !told => {
                tracing::error!(%address, %error, "metrics-listen: can't listen there; trying again every 5 s");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn serve<S>(office: &Arc<Office>, stream: S, places: &Arc<Semaphore>, loopback: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Never closed, so that the only error cannot happen.
    let place = places.clone().acquire_owned().await;
    let office = office.clone();
    tokio::spawn(async move {
        let _place = place;
        let answer = service_fn(|request: Request<Incoming>| {
            let office = office.clone();
            async move { Ok::<_, Infallible>(routes::answer(&office, &request, loopback).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), answer);
        // Who goes away in the middle does not want to know.
        let _ = connection.await;
    });
}
