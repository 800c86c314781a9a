//! The demonstration's cache on the loopback interface, behind a link that is slow on purpose.

use std::{
    convert::Infallible,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    http::response::Builder,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, sleep_until},
};

use super::pack::Cache;

/// Bytes that travel together: at 200 Mbit/s, 0.7 ms.
const PACKET: usize = 16 << 10;

/// What a packet that was woken late may make up for: timers count whole milliseconds, and without
/// this the link would be slower than it says.
const LATE: Duration = Duration::from_millis(3);

/// A link with one capacity for all connections.
pub struct Link {
    rtt: Duration,
    /// Seconds that a byte takes; 0 without a limit.
    per_byte: f64,
    free_at: Mutex<Instant>,
}

impl Link {
    /// A link with this round trip and megabits (10^6) per second, 0 for no limit.
    pub fn new(rtt: Duration, mbit: f64) -> Self {
        let per_byte = if mbit > 0.0 { 8.0 / (mbit * 1e6) } else { 0.0 };
        Self {
            rtt,
            per_byte,
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// How long `bytes` take at least when nothing else travels, the round trip included.
    pub fn time_for(&self, bytes: u64) -> Duration {
        self.rtt + Duration::from_secs_f64(bytes as f64 * self.per_byte)
    }

    /// Waits until `bytes` more have passed.
    async fn pass(&self, bytes: usize) {
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = Instant::now().checked_sub(LATE).unwrap_or(*free_at);
            *free_at =
                (*free_at).max(earliest) + Duration::from_secs_f64(bytes as f64 * self.per_byte);
            *free_at
        };
        sleep_until(until).await;
    }
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, cache: Arc<Cache>, link: Arc<Link>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (cache, link) = (cache.clone(), link.clone());
        tokio::spawn(async move {
            // The handshake of TCP is a round trip, too.
            sleep(link.rtt).await;
            let answer = service_fn(|request| {
                let (cache, link) = (cache.clone(), link.clone());
                async move {
                    sleep(link.rtt).await;
                    Ok::<_, Infallible>(answer(&request, &cache, link))
                }
            });
            // A client that goes away in the middle is what a lazy store does.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// `http://127.0.0.1:PORT`
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

type Body = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

fn answer(request: &Request<Incoming>, cache: &Cache, link: Arc<Link>) -> Response<Body> {
    let name = request.uri().path().trim_start_matches('/');
    let Some(file) = cache.file(name) else {
        return finish(
            Response::builder().status(StatusCode::NOT_FOUND),
            Bytes::new(),
            link,
        );
    };
    let total = file.len();
    let head = Response::builder().header(header::ACCEPT_RANGES, "bytes");
    let range = request
        .headers()
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    match range.map(|text| parse_range(text, total)) {
        None => finish(head, file, link),
        Some(None) => {
            let head = head.status(StatusCode::RANGE_NOT_SATISFIABLE);
            finish(
                head.header(header::CONTENT_RANGE, format!("bytes */{total}")),
                Bytes::new(),
                link,
            )
        }
        Some(Some(range)) => {
            let text = format!("bytes {}-{}/{total}", range.start, range.end - 1);
            let head = head
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, text);
            finish(head, file.slice(range), link)
        }
    }
}

fn finish(head: Builder, body: Bytes, link: Arc<Link>) -> Response<Body> {
    let length = body.len();
    let packets = stream::unfold(body, move |mut rest| {
        let link = link.clone();
        async move {
            if rest.is_empty() {
                return None;
            }
            let packet = rest.split_to(rest.len().min(PACKET));
            link.pass(packet.len()).await;
            Some((Ok(Frame::data(packet)), rest))
        }
    });
    let head = head.header(header::CONTENT_LENGTH, length);
    // Made from numbers and constants: there is nothing in it that a header may not hold.
    let packets: stream::BoxStream<'static, _> = Box::pin(packets);
    head.body(StreamBody::new(packets))
        .unwrap_or_else(|e| unreachable!("{e}"))
}

/// `bytes=0-9`, `bytes=10-`, `bytes=-5`: one range, inside the file.
fn parse_range(text: &str, total: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first, last) {
        ("", suffix) => total.saturating_sub(suffix.parse().ok()?)..total,
        (first, "") => first.parse().ok()?..total,
        (first, last) => {
            first.parse().ok()?..last.parse::<usize>().ok()?.saturating_add(1).min(total)
        }
    };
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_clients_write_them() {
        for (text, want) in [
            ("bytes=0-9", Some(0..10)),
            ("bytes=90-200", Some(90..100)),
            ("bytes=10-", Some(10..100)),
            ("bytes=-5", Some(95..100)),
            ("bytes=-500", Some(0..100)),
            ("bytes=100-", None),
            ("bytes=9-0", None),
            ("bytes=-0", None),
            ("bytes=0-1,5-6", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(parse_range(text, 100), want, "{text}");
        }
    }

    #[test]
    fn a_link_takes_its_time() {
        let link = Link::new(Duration::from_millis(20), 200.0);
        assert_eq!(link.time_for(25_000_000), Duration::from_millis(1020));
        assert_eq!(
            Link::new(Duration::ZERO, 0.0).time_for(u64::MAX),
            Duration::ZERO
        );
    }
}
