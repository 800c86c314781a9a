//! One GET, as binary caches need it: redirects by hand, ranges checked, nothing decompressed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::{
    Response, StatusCode,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, LAST_MODIFIED,
        LOCATION, RANGE, RETRY_AFTER,
    },
};
use tokio::time::timeout;
use url::Url;

use super::{
    body::{Names, NarBody, Pieces},
    counters::Counters,
    credentials::{Credentials, Reached},
    error::FetchFailure,
    location::{shown, strip_login},
    range::{ContentRange, Wanted, unsatisfied_total},
    retry::retry_after,
    transport::{Transport, classify},
};
use crate::trace::Flight;

/// Redirects followed for one request, as in Nix and curl-based tools' habit of 10.
const MAX_REDIRECTS: usize = 10;

/// An error page up to this many bytes is read to its end, because that keeps the connection.
const DRAIN: usize = 64 << 10;

/// Patience for the rest of such a page.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// What to ask for.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) wanted: Wanted,
    /// Of the file that other parts came from.
    pub(super) validator: Option<String>,
    /// What may be done to the bytes on the way. `identity` for what is read by position.
    pub(super) accept_encoding: &'static str,
}

/// What came.
pub(super) enum Answer {
    /// 403, 404 or 410, which one.
    Absent(u16),
    /// A body.
    Found(Box<NarBody>),
}

impl Answer {
    /// The body of something that a narinfo promised.
    pub(super) fn promised(self) -> Result<NarBody, FetchFailure> {
        match self {
            Self::Found(body) => Ok(*body),
            Self::Absent(403) => Err(FetchFailure::Denied("403".into())),
            Self::Absent(_) => Err(FetchFailure::Missing),
        }
    }
}

/// Whoever sends requests for one substituter.
#[derive(Debug, Clone)]
pub(super) struct Getter {
    pub(super) transport: Transport,
    pub(super) substituter: Arc<str>,
    pub(super) counters: Arc<Counters>,
}

impl Getter {
    /// Sends one request and follows its redirects. No retries.
    pub(super) async fn get(
        &self,
        url: &Url,
        credentials: Option<&Credentials>,
        ask: &Ask,
    ) -> Result<Answer, FetchFailure> {
        let mut url = url.clone();
        let mut reached = Reached::Directly;
        let mut visited: Vec<Url> = Vec::new();
        loop {
            strip_login(&mut url);
            let authorization = credentials.and_then(|c| c.header(&url, reached));
            let (response, mut flight) = self.send(&url, authorization, ask).await?;
            flight.answered(response.status().as_u16());
            let Some(next) = redirect(&url, &response)? else {
                return self.answer(&url, response, ask, flight).await;
            };
            flight.done();
            visited.push(url);
            if visited.len() > MAX_REDIRECTS || visited.contains(&next) {
                return Err(FetchFailure::RedirectLoop {
                    limit: MAX_REDIRECTS,
                    to: shown(&next),
                });
            }
            drain(response).await;
            url = next;
            reached = Reached::ByRedirect;
        }
    }

    async fn send(
        &self,
        url: &Url,
        authorization: Option<HeaderValue>,
        ask: &Ask,
    ) -> Result<(Response, Flight), FetchFailure> {
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT_ENCODING,
            HeaderValue::from_static(ask.accept_encoding),
        );
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value);
        }
        if let Some(range) = ask.wanted.header() {
            headers.insert(RANGE, header_value(&range)?);
            if let Some(validator) = &ask.validator {
                headers.insert(IF_RANGE, header_value(validator)?);
            }
        }
        let client = self.transport.client(url.scheme()).await?;
        self.counters.request();
        let address = || shown(url).into();
        let mut flight = Flight::of(&self.substituter, address, || ask.wanted.header());
        let options = self.transport.options();
        // Connecting has its own time-out inside; this one is for a server that says nothing.
        let patience = options.connect_timeout + options.stall_timeout;
        let request = client.get(url.clone()).headers(headers);
        let sent = match timeout(patience, request.send()).await {
            Ok(sent) => sent.map_err(classify),
            Err(_) => Err(FetchFailure::Stalled {
                bytes: 0,
                window: patience,
            }),
        };
        match sent {
            Ok(response) => Ok((response, flight)),
            Err(failure) => {
                flight.failed(failure.slug());
                Err(failure)
            }
        }
    }

    async fn answer(
        &self,
        url: &Url,
        response: Response,
        ask: &Ask,
        flight: Flight,
    ) -> Result<Answer, FetchFailure> {
        let status = response.status();
        let found = match status {
            StatusCode::OK => whole(response.headers(), ask)?,
            StatusCode::PARTIAL_CONTENT => part(response.headers(), ask)?,
            StatusCode::UNAUTHORIZED => {
                drain(response).await;
                return Err(FetchFailure::Denied("401".into()));
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => return Err(FetchFailure::ProxyDenied),
            StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let page = drain(response).await;
                return match s3_refusal(&page) {
                    Some(code) => Err(FetchFailure::Denied(code.into())),
                    None if status == StatusCode::FORBIDDEN => Ok(Answer::Absent(403)),
                    None => Err(FetchFailure::Status {
                        status: 400,
                        retry_after: None,
                    }),
                };
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                drain(response).await;
                return Ok(Answer::Absent(status.as_u16()));
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let total = text(response.headers(), CONTENT_RANGE).and_then(unsatisfied_total);
                drain(response).await;
                return Err(FetchFailure::OutOfRange { total });
            }
            _ if status.is_success() => {
                return Err(FetchFailure::Protocol(format!(
                    "answers a GET with {status}"
                )));
            }
            _ => {
                let headers = response.headers();
                let date = text(headers, DATE);
                let wait = text(headers, RETRY_AFTER).and_then(|value| retry_after(value, date));
                drain(response).await;
                return Err(FetchFailure::Status {
                    status: status.as_u16(),
                    retry_after: wait,
                });
            }
        };
        let names = Names {
            substituter: self.substituter.clone(),
            address: shown(url).into(),
            counters: self.counters.clone(),
        };
        let stall = self.transport.options().stall_timeout;
        let mut body = NarBody::new(pieces(response), found.start, found.end, stall, names);
        body.flight = flight;
        body.total = found.total;
        body.validator = found.validator;
        body.encoding = found.encoding;
        Ok(Answer::Found(Box::new(body)))
    }
}

/// What the headers of a good answer say.
struct Found {
    start: u64,
    end: Option<u64>,
    total: Option<u64>,
    validator: Option<String>,
    encoding: Option<String>,
}

/// 200: all of the file, whatever was asked for.
fn whole(headers: &HeaderMap, ask: &Ask) -> Result<Found, FetchFailure> {
    refuse_html(headers)?;
    if let Some(asked) = &ask.validator
        && current(headers, asked) != Some(asked.as_str())
    {
        return Err(FetchFailure::Changed);
    }
    let encoding = encoding(headers);
    let length = match text(headers, CONTENT_LENGTH).map(str::parse) {
        Some(Ok(length)) => Some(length),
        Some(Err(_)) => return Err(FetchFailure::Protocol("unreadable Content-Length".into())),
        None => None,
    };
    let total = length.filter(|_| encoding.is_none());
    match (&ask.wanted, total) {
        (Wanted::Tail(n), Some(total)) if total <= *n => {}
        // Streaming a whole NAR for its last bytes is for nobody's good.
        (Wanted::Tail(_), _) => return Err(FetchFailure::NoRanges),
        (wanted, Some(total)) if wanted.within(total).is_none() => {
            return Err(FetchFailure::OutOfRange { total: Some(total) });
        }
        _ => {}
    }
    Ok(Found {
        start: 0,
        end: length,
        total,
        validator: validator(headers),
        encoding,
    })
}

/// 206: the part that was asked for, and nothing else.
fn part(headers: &HeaderMap, ask: &Ask) -> Result<Found, FetchFailure> {
    let protocol = |what: String| FetchFailure::Protocol(what);
    if ask.wanted == Wanted::Whole {
        return Err(protocol(
            "sends a part (206) where all was asked for".into(),
        ));
    }
    refuse_html(headers)?;
    let value = text(headers, CONTENT_RANGE)
        .ok_or_else(|| protocol("sends a part (206) without saying which".into()))?;
    let range = ContentRange::parse(value)
        .filter(|range| range.answers(&ask.wanted))
        .ok_or_else(|| {
            let asked = ask.wanted.header().unwrap_or_default();
            protocol(format!("asked for {asked}, it sends {value:?}"))
        })?;
    if let Some(length) = text(headers, CONTENT_LENGTH)
        && length.parse() != Ok(range.bytes.end - range.bytes.start)
    {
        return Err(protocol(format!(
            "Content-Length {length:?} is not that of {value:?}"
        )));
    }
    if encoding(headers).is_some() {
        // Positions in a file that was compressed on the way are nobody's positions.
        return Err(FetchFailure::NoRanges);
    }
    if let Some(asked) = &ask.validator
        && current(headers, asked).is_some_and(|now| now != asked)
    {
        return Err(FetchFailure::Changed);
    }
    Ok(Found {
        start: range.bytes.start,
        end: Some(range.bytes.end),
        total: range.total,
        validator: validator(headers),
        encoding: None,
    })
}

/// Where a redirect leads, if the answer is one.
fn redirect(from: &Url, response: &Response) -> Result<Option<Url>, FetchFailure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = text(response.headers(), LOCATION) else {
        return Ok(None);
    };
    let mut to = from
        .join(location)
        .map_err(|error| FetchFailure::BadAddress(format!("redirect: {error}")))?;
    to.set_fragment(None);
    strip_login(&mut to);
    allowed(from, &to)?;
    Ok(Some(to))
}

/// Whether the way may lead from one address to another.
pub(super) fn allowed(from: &Url, to: &Url) -> Result<(), FetchFailure> {
    match (from.scheme(), to.scheme()) {
        ("https", "http") => Err(FetchFailure::Downgrade(shown(to))),
        (_, "http" | "https") => Ok(()),
        (_, other) => Err(FetchFailure::BadAddress(format!("leads to {other}://"))),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn header_value(text: &str) -> Result<HeaderValue, FetchFailure> {
    HeaderValue::from_str(text)
        .map_err(|_| FetchFailure::Protocol("a validator that is no header value".into()))
}

fn encoding(headers: &HeaderMap) -> Option<String> {
    let value = text(headers, CONTENT_ENCODING)?.to_ascii_lowercase();
    (!value.is_empty() && value != "identity").then_some(value)
}

/// What can prove later that the file is still the same (RFC 9110, 8.8): a strong `ETag`, or a
/// `Last-Modified` that is older than the answer.
fn validator(headers: &HeaderMap) -> Option<String> {
    if let Some(etag) = text(headers, ETAG).filter(|etag| etag.starts_with('"')) {
        return Some(etag.to_owned());
    }
    let modified = text(headers, LAST_MODIFIED)?;
    (Some(modified) != text(headers, DATE)).then(|| modified.to_owned())
}

/// What the answer says now in the header that `asked` came from.
fn current<'a>(headers: &'a HeaderMap, asked: &str) -> Option<&'a str> {
    text(
        headers,
        if asked.starts_with('"') {
            ETAG
        } else {
            LAST_MODIFIED
        },
    )
}

/// Captive portals and single-page applications answer everything with 200 and HTML.
fn refuse_html(headers: &HeaderMap) -> Result<(), FetchFailure> {
    let html = text(headers, CONTENT_TYPE).is_some_and(|kind| {
        kind.get(..9)
            .is_some_and(|k| k.eq_ignore_ascii_case("text/html"))
    });
    if html {
        Err(FetchFailure::NotACache("it answers with HTML"))
    } else {
        Ok(())
    }
}

/// S3 says 403 both for an object that is not there and for a key that is wrong. Its XML tells.
fn s3_refusal(page: &[u8]) -> Option<&'static str> {
    const CODES: [&str; 7] = [
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "TokenRefreshRequired",
        "RequestTimeTooSkewed",
        "AuthorizationHeaderMalformed",
    ];
    let page = std::str::from_utf8(page).ok()?;
    let code = page.split_once("<Code>")?.1.split_once("</Code>")?.0;
    CODES.into_iter().find(|known| *known == code)
}

/// Reads the small rest of an answer that nobody wants, so that the connection can be used again.
async fn drain(mut response: Response) -> Vec<u8> {
    let mut page = Vec::new();
    let rest = async {
        while let Ok(Some(piece)) = response.chunk().await {
            page.extend_from_slice(&piece);
            if page.len() > DRAIN {
                break;
            }
        }
    };
    // Without the rest we only lose the connection.
    let _ = timeout(DRAIN_TIME, rest).await;
    page
}

fn pieces(response: Response) -> Pieces {
    Box::pin(
        response
            .bytes_stream()
            .map(|piece: Result<Bytes, reqwest::Error>| {
                piece.map_err(|error| match classify(error) {
                    FetchFailure::Lost(detail) | FetchFailure::Connect(detail) => {
                        FetchFailure::Truncated { got: 0, detail }
                    }
                    other => other,
                })
            }),
    )
}
