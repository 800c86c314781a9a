//! A web server that misbehaves on command: HTTP/1.1 on a loopback port, one thread for a
//! connection, no runtime needed, so that it serves plain and asynchronous tests alike.
//!
//! ```ignore
//! let server = Server::start();
//! server.directory("/path/of/a/cache");                    // what is not scripted comes from here
//! server.on("/nar/x.nar.xz", Reply::as_it_is().cut_after(1000));
//! server.script("/y.narinfo", [Reply::status(503), Reply::status(429), Reply::as_it_is()]);
//! …                                                        // base URL: server.base()
//! assert_eq!(server.count("/y.narinfo"), 3);
//! ```
//!
//! Behaviours can be changed at any time; a request gets the one that is set when it comes. The
//! last reply of a script stays. Nothing depends on the clock unless a reply is told to
//! (`delay`, `trickle`); to stop at a point until the test says so, use a [`Gate`].
//! Dropping the server ends its connections and threads.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
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
    fn pass(&self, stopped: &AtomicBool) {
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
enum Body {
    Bytes(Arc<Vec<u8>>),
    /// The file of [`Server::directory`] at the request's path; 404 without one.
    Directory,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
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
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    ranges: bool,
    range_shift: i64,
    etag: Option<Option<String>>,
    length: Length,
    delay: Duration,
    trickle: Option<(usize, Duration)>,
    cut: Option<u64>,
    reset: bool,
    before: Option<Gate>,
    pause: Option<(u64, Gate)>,
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

    /// The connection ends without an answer.
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

type Responder = dyn Fn(&Request) -> Reply + Send + Sync;

enum Route {
    Script(VecDeque<Reply>),
    Function(Arc<Responder>),
}

#[derive(Default)]
struct State {
    directory: Option<PathBuf>,
    routes: HashMap<String, Route>,
    everything: Option<Reply>,
    requests: Vec<Request>,
    streams: HashMap<usize, TcpStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: AtomicBool,
    vanished: AtomicBool,
    connections: AtomicUsize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn close_all(&self) {
        for (_, stream) in self.state().streams.drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The server. See the module.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    scheme: &'static str,
}

impl Server {
    /// Listens on 127.0.0.1, on a port that the system picks. Answers 404 to everything.
    pub fn start() -> Self {
        Self::listen(None)
    }

    /// The same with TLS; [`certificate`] is the one to trust.
    pub fn start_tls() -> Self {
        Self::listen(Some(Arc::new(tls())))
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        let acceptor = thread::spawn(move || accept(&listener, tls.as_ref(), &accepting));
        Self {
            address,
            shared,
            acceptor: Some(acceptor),
            scheme,
        }
    }

    /// `http://127.0.0.1:<port>`, or `https://…`.
    pub fn base(&self) -> String {
        self.url_on("127.0.0.1", "")
    }

    /// The full URL of a path.
    pub fn url(&self, path: &str) -> String {
        self.url_on("127.0.0.1", path)
    }

    /// The URL of a path, under another name of this machine (`localhost`).
    pub fn url_on(&self, host: &str, path: &str) -> String {
        format!("{}://{host}:{}{path}", self.scheme, self.address.port())
    }

    /// Serves the files below this directory where nothing is scripted.
    pub fn directory(&self, directory: impl Into<PathBuf>) {
        self.shared.state().directory = Some(directory.into());
    }

    /// Every request for this path (with its query) gets this.
    pub fn on(&self, path: &str, reply: Reply) {
        self.script(path, [reply]);
    }

    /// The requests for this path get these in turn; the last one stays.
    pub fn script(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies: VecDeque<_> = replies.into_iter().collect();
        assert!(!replies.is_empty(), "a script without replies");
        self.shared
            .state()
            .routes
            .insert(path.into(), Route::Script(replies));
    }

    /// A function decides for every request for this path.
    pub fn decide(&self, path: &str, reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.shared
            .state()
            .routes
            .insert(path.into(), Route::Function(Arc::new(reply)));
    }

    /// This path is no longer scripted.
    pub fn forget(&self, path: &str) {
        self.shared.state().routes.remove(path);
    }

    /// Every request for whatever path gets this, or (`None`) what its path says again.
    pub fn everything(&self, reply: Option<Reply>) {
        self.shared.state().everything = reply;
    }

    /// Ends all connections, and each new one at once, until [`Server::come_back`].
    pub fn vanish(&self) {
        self.shared.vanished.store(true, SeqCst);
        self.shared.close_all();
    }

    /// Ends what [`Server::vanish`] began.
    pub fn come_back(&self) {
        self.shared.vanished.store(false, SeqCst);
    }

    /// All requests so far, in order of their coming.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// The requests for this path.
    pub fn requests_for(&self, path: &str) -> Vec<Request> {
        self.requests()
            .into_iter()
            .filter(|request| request.path == path)
            .collect()
    }

    /// How many there were for this path.
    pub fn count(&self, path: &str) -> usize {
        self.requests_for(path).len()
    }

    /// Forgets the requests.
    pub fn clear(&self) {
        self.shared.state().requests.clear();
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(self.address);
        // Behind this the port is closed for certain.
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.close_all();
    }
}

/// The file with the certificate of [`Server::start_tls`].
pub fn certificate() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls/certificate.pem")
}

fn tls() -> ServerConfig {
    let key = PrivateKeyDer::from_pem_file(certificate().with_file_name("key.pem")).unwrap();
    let chain = vec![CertificateDer::from_pem_file(certificate()).unwrap()];
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

fn accept(listener: &TcpListener, tls: Option<&Arc<ServerConfig>>, shared: &Arc<Shared>) {
    for (id, stream) in listener.incoming().enumerate() {
        if shared.stopped.load(SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if shared.vanished.load(SeqCst) {
            continue;
        }
        shared.connections.fetch_add(1, SeqCst);
        let Ok(copy) = stream.try_clone() else {
            continue;
        };
        shared.state().streams.insert(id, copy);
        let (shared, tls) = (shared.clone(), tls.cloned());
        thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            // However the client leaves is its own business.
            let _ = match tls.map(ServerConnection::new) {
                Some(Ok(mut tls)) => converse(rustls::Stream::new(&mut tls, &mut &stream), &shared),
                Some(Err(error)) => Err(io::Error::other(error)),
                None => converse(&stream, &shared),
            };
            let _ = stream.shutdown(Shutdown::Both);
            shared.state().streams.remove(&id);
        });
    }
}

/// One connection, plain or inside TLS.
fn converse(stream: impl Read + Write, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream)? {
        shared.state().requests.push(request.clone());
        let (reply, directory) = choose(&request, shared);
        let goes_on = send(stream.get_mut(), &request, reply, directory, shared)?;
        stream.get_mut().flush()?;
        if !goes_on {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (method, path) = (word(), word());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Request {
        method,
        path,
        headers,
    }))
}

fn choose(request: &Request, shared: &Shared) -> (Reply, Option<PathBuf>) {
    let mut state = shared.state();
    let directory = state.directory.clone();
    if let Some(reply) = &state.everything {
        return (reply.clone(), directory);
    }
    let reply = match state.routes.get_mut(&request.path) {
        Some(Route::Script(replies)) if replies.len() > 1 => replies.pop_front().unwrap(),
        Some(Route::Script(replies)) => replies[0].clone(),
        Some(Route::Function(decide)) => {
            let decide = decide.clone();
            drop(state);
            decide(request)
        }
        None => Reply::as_it_is(),
    };
    (reply, directory)
}

/// Sends a reply; whether the connection can go on.
fn send(
    stream: &mut impl Write,
    request: &Request,
    mut reply: Reply,
    directory: Option<PathBuf>,
    shared: &Shared,
) -> io::Result<bool> {
    thread::sleep(reply.delay);
    if let Some(gate) = &reply.before {
        gate.pass(&shared.stopped);
    }
    if reply.reset || shared.stopped.load(SeqCst) {
        return Ok(false);
    }
    let bytes = match &reply.body {
        Body::Bytes(bytes) => bytes.clone(),
        Body::Directory => match read(directory, &request.path) {
            Some(bytes) => Arc::new(bytes),
            None => {
                let gone = Reply::status(404);
                reply = Reply {
                    delay: reply.delay,
                    ..gone
                };
                Arc::new(b"not found\n".to_vec())
            }
        },
    };
    let mut head = Vec::new();
    let etag = match &reply.etag {
        Some(etag) => etag.clone(),
        None => (reply.status == 200).then(|| content_etag(&bytes)),
    };
    if let Some(etag) = &etag {
        head.push(("ETag".to_owned(), etag.clone()));
    }
    let range = wanted(request, &reply, etag.as_deref(), bytes.len() as u64);
    let (status, part) = match range {
        Some(Some(range)) => {
            let shift = |n: u64| {
                n.saturating_add_signed(reply.range_shift)
                    .min(bytes.len() as u64)
            };
            let (start, end) = (shift(range.0), shift(range.1));
            let value = format!("bytes {start}-{}/{}", end.max(1) - 1, bytes.len());
            head.push(("Content-Range".to_owned(), value));
            (206, &bytes[start as usize..end as usize])
        }
        Some(None) => {
            head.push((
                "Content-Range".to_owned(),
                format!("bytes */{}", bytes.len()),
            ));
            (416, &bytes[..0])
        }
        None => (reply.status, &bytes[..]),
    };
    head.append(&mut reply.headers);
    let mut goes_on = true;
    match reply.length {
        Length::Right => head.push(("Content-Length".into(), part.len().to_string())),
        Length::Chunked => head.push(("Transfer-Encoding".into(), "chunked".into())),
        Length::Claimed(length) => {
            head.push(("Content-Length".into(), length.to_string()));
            goes_on = false;
        }
        Length::Unsaid => {
            head.push(("Connection".into(), "close".into()));
            goes_on = false;
        }
    }
    let head: String = head
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    write!(stream, "HTTP/1.1 {status} Scripted\r\n{head}\r\n")?;
    let cut = reply
        .cut
        .map_or(part.len(), |cut| part.len().min(cut as usize));
    let chunked = reply.length == Length::Chunked;
    let mut sent = 0;
    loop {
        if let Some((at, gate)) = &reply.pause
            && sent as u64 == *at
        {
            stream.flush()?;
            gate.pass(&shared.stopped);
        }
        if sent == cut || shared.stopped.load(SeqCst) {
            break;
        }
        let mut end = cut;
        if let Some((at, _)) = reply.pause
            && (sent as u64) < at
        {
            end = end.min(at as usize);
        }
        if let Some((bytes, every)) = reply.trickle {
            end = end.min(sent + bytes);
            thread::sleep(every);
        }
        if chunked {
            write!(stream, "{:x}\r\n", end - sent)?;
        }
        stream.write_all(&part[sent..end])?;
        if chunked {
            stream.write_all(b"\r\n")?;
        }
        sent = end;
    }
    if sent < part.len() {
        return Ok(false);
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(goes_on)
}

fn read(directory: Option<PathBuf>, path: &str) -> Option<Vec<u8>> {
    let path = path.split('?').next()?.trim_start_matches('/');
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let file = directory?.join(path);
    if file.is_file() {
        std::fs::read(file).ok()
    } else {
        None
    }
}

fn content_etag(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// The range of an acceptable `Range` header: `None` for all, `Some(None)` for none of it.
fn wanted(
    request: &Request,
    reply: &Reply,
    etag: Option<&str>,
    len: u64,
) -> Option<Option<(u64, u64)>> {
    if !reply.ranges || reply.status != 200 {
        return None;
    }
    if request
        .header("if-range")
        .is_some_and(|asked| Some(asked) != etag)
    {
        return None;
    }
    let (first, last) = request
        .header("range")?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, (last + 1).min(len)),
        (Ok(first), Err(_)) => (first, len),
        (Err(_), Ok(n)) => (len.saturating_sub(n), len),
        (Err(_), Err(_)) => return None,
    };
    Some((range.0 < range.1).then_some(range))
}
