//! What a request gets, and what a request was.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

/// Something that replies wait for until the test opens it. Opened for good.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everyone through.
    pub fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }

    /// Waits (blocking) until so many replies wait here: then the test knows where they are.
    pub fn wait_for(&self, waiting: usize) {
        let state = self.0.0.lock().unwrap();
        let patience = Duration::from_secs(60);
        let enough = self
            .0
            .1
            .wait_timeout_while(state, patience, |state| state.waiting < waiting);
        assert!(
            !enough.unwrap().1.timed_out(),
            "no {waiting} requests came to the gate"
        );
    }

    /// Waits until it is open or the server stops.
    pub(super) fn pass(&self, stopped: &AtomicBool) {
        let mut state = self.0.0.lock().unwrap();
        state.waiting += 1;
        self.0.1.notify_all();
        while !state.open && !stopped.load(SeqCst) {
            state = self
                .0
                .1
                .wait_timeout(state, Duration::from_millis(20))
                .unwrap()
                .0;
        }
        state.waiting -= 1;
    }
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// A header's value; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

#[derive(Clone)]
pub(super) enum Body {
    Bytes(Arc<Vec<u8>>),
    /// The file of [`Server::directory`] at the request's path; 404 without one.
    Directory,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Right,
    /// `Content-Length` says this.
    Claimed(u64),
    /// None: the body ends with the connection.
    Unsaid,
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What a request gets. Start with one of the constructors, then bend it.
#[derive(Clone)]
pub struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Body,
    pub(super) ranges: bool,
    pub(super) range_shift: i64,
    pub(super) etag: Option<Option<String>>,
    pub(super) length: Length,
    pub(super) delay: Duration,
    pub(super) trickle: Option<(usize, Duration)>,
    pub(super) cut: Option<u64>,
    pub(super) reset: bool,
    pub(super) corrupt: Option<u64>,
    pub(super) before: Option<Gate>,
    pub(super) pause: Option<(u64, Gate)>,
}

impl Reply {
    /// 200 with these bytes, 206 for a part of them, with a strong `ETag` of the content.
    pub fn file(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: Body::Bytes(Arc::new(bytes.into())),
            ranges: true,
            range_shift: 0,
            etag: None,
            length: Length::Right,
            delay: Duration::ZERO,
            trickle: None,
            cut: None,
            reset: false,
            corrupt: None,
            before: None,
            pause: None,
        }
    }

    /// What the server's directory holds at that path, or 404.
    pub fn as_it_is() -> Self {
        Self {
            body: Body::Directory,
            ..Self::file("")
        }
    }

    /// This status and a short text.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ranges: false,
            ..Self::file(format!("status {status}\n"))
        }
    }

    /// A captive portal: 200 with HTML.
    pub fn html() -> Self {
        let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
        let reply = Self {
            ranges: false,
            ..Self::file(page)
        };
        reply.header("Content-Type", "text/html; charset=utf-8")
    }

    /// 302 to there.
    pub fn redirect(to: impl Into<String>) -> Self {
        Self::status(302).header("Location", to)
    }

    /// Never an answer; the connection stays open.
    pub fn hang() -> Self {
        Self::status(200).behind(&Gate::new())
    }

    /// The connection is torn without an answer.
    pub fn reset() -> Self {
        Self {
            reset: true,
            ..Self::status(500)
        }
    }

    /// With other bytes.
    pub fn with_body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Bytes(Arc::new(bytes.into()));
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With another `ETag`, as `"x"` or `W/"x"`; without one for `None`.
    pub fn etag(mut self, etag: Option<&str>) -> Self {
        self.etag = Some(etag.map(Into::into));
        self
    }

    /// 200 with everything, whatever range was asked for.
    pub fn ignoring_ranges(mut self) -> Self {
        self.ranges = false;
        self
    }

    /// 206 with bytes and `Content-Range` that begin so much later than asked for.
    pub fn shifted_range(mut self, by: i64) -> Self {
        self.range_shift = by;
        self
    }

    /// Without `Content-Length`; the body ends with the connection.
    pub fn without_length(mut self) -> Self {
        self.length = Length::Unsaid;
        self
    }

    /// With this `Content-Length`, right or wrong; the connection ends after the body.
    pub fn claiming_length(mut self, length: u64) -> Self {
        self.length = Length::Claimed(length);
        self
    }

    /// In chunks.
    pub fn chunked(mut self) -> Self {
        self.length = Length::Chunked;
        self
    }

    /// So much later.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// So many bytes each time.
    pub fn trickle(mut self, bytes: usize, every: Duration) -> Self {
        self.trickle = Some((bytes, every));
        self
    }

    /// The connection ends after so many bytes of the body.
    pub fn cut_after(mut self, bytes: u64) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// The connection is torn (RST, not an orderly end) after so many bytes of the body.
    pub fn reset_after(mut self, bytes: u64) -> Self {
        self.cut = Some(bytes);
        self.reset = true;
        self
    }

    /// The byte at this place of the file has its bits flipped, as on its way or on a bad disk.
    pub fn corrupt_at(mut self, byte: u64) -> Self {
        self.corrupt = Some(byte);
        self
    }

    /// Nothing, not even the status, before the gate opens.
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.before = Some(gate.clone());
        self
    }

    /// So many bytes of the body, then nothing before the gate opens.
    pub fn pausing_at(mut self, bytes: u64, gate: &Gate) -> Self {
        self.pause = Some((bytes, gate.clone()));
        self
    }
}
