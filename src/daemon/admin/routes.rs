//! What is answered to whom.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue},
};
use serde::Serialize;

use super::{Office, probe, process::Process, views};
use crate::metrics::{self, Scrape};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const ROUTES: &str =
    "there are /live, /ready, /metrics, /status.json, /debug/inflight and /debug/metrics.json\n";

/// The answer to a request; `loopback` if it came over TCP.
pub(super) async fn answer<B>(
    office: &Office,
    request: &Request<B>,
    loopback: bool,
) -> Response<Full<Bytes>> {
    if loopback && !names_this_machine(request.headers().get(HOST)) {
        // A page in somebody's browser that made its own name lead here.
        let text = "the Host is not this machine's loopback\n";
        return response(StatusCode::FORBIDDEN, TEXT, text);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    let shared = &office.shared;
    match request.uri().path() {
        "/live" => verdict("live", probe::live(&shared.store).await),
        "/ready" => verdict("ready", probe::ready(&office.checks, &shared.store).await),
        "/metrics" => match metrics::text(scrape(office)) {
            Ok(text) => response(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(e) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{e}\n")),
        },
        "/status.json" => json(&shared.store.summary_of_whole()),
        "/debug/inflight" => json(&views::in_flight(shared)),
        "/debug/metrics.json" => json(&views::series(&scrape(office))),
        "/" => response(StatusCode::OK, TEXT, ROUTES),
        _ => response(StatusCode::NOT_FOUND, TEXT, ROUTES),
    }
}

fn scrape(office: &Office) -> Scrape {
    let (shared, process) = (&office.shared, Process(&office.shared));
    let mut scrape = Scrape::of(&[&shared.store, &*shared.options.upcalls, &process]);
    for source in &office.sources {
        source.collect(&mut scrape);
    }
    scrape
}

/// Whether a request was meant for a loopback address: whoever has no `Host` is no browser.
fn names_this_machine(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host else { return true };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let Ok(url) = url::Url::parse(&format!("http://{host}/")) else {
        return false;
    };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn verdict(word: &str, outcome: Result<(), String>) -> Response<Full<Bytes>> {
    match outcome {
        Ok(()) => response(StatusCode::OK, TEXT, format!("{word}\n")),
        Err(why) => {
            let text = format!("not {word}: {why}\n");
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
        }
    }
}

fn json(document: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(document) {
        Ok(mut text) => {
            text.push(b'\n');
            response(StatusCode::OK, JSON, text)
        }
        Err(e) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{e}\n")),
    }
}

fn response(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_be_meant() {
        let named = |host: &'static str| names_this_machine(Some(&HeaderValue::from_static(host)));
        for ours in ["localhost:9633", "127.0.0.1:9633", "127.1.2.3", "[::1]:80"] {
            assert!(named(ours), "{ours}");
        }
        for other in [
            "evil.example.org:9633",
            "localhost.evil.org",
            "10.0.0.1",
            "",
        ] {
            assert!(!named(other), "{other}");
        }
        assert!(names_this_machine(None));
    }
}
