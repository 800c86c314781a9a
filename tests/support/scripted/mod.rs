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
//! Faults that go by the number of the request or by the time, whatever is asked for:
//!
//! ```ignore
//! server.fault(When::Request(3), Reply::reset_after(1000));   // the third from now, once
//! server.fault(When::Seconds(0.5..2.0), Reply::status(503));  // all that come in this time from now
//! assert_eq!(server.faults(), 1);                             // how many requests met one
//! ```
//!
//! By the byte: `cut_after`, `reset_after`, `pausing_at`, `corrupt_at`.
//!
//! Behaviours can be changed at any time; a request gets the one that is set when it comes. The
//! last reply of a script stays. Nothing depends on the clock unless a reply is told to
//! (`delay`, `trickle`); to stop at a point until the test says so, use a [`Gate`].
//! Dropping the server ends its connections and threads.

mod reply;
mod wire;

use std::{
    collections::{HashMap, VecDeque},
    io::{self, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

pub use self::reply::{Gate, Reply, Request};
use self::wire::{Then, read_request, send};

type Responder = dyn Fn(&Request) -> Reply + Send + Sync;

enum Route {
    Script(VecDeque<Reply>),
    Function(Arc<Responder>),
}

/// Which requests meet a fault.
#[derive(Debug, Clone, PartialEq)]
pub enum When {
    /// The one with this number from now, 1 for the next, whatever it is for. Once.
    Request(usize),
    /// Each that comes in this time, in seconds from now.
    Seconds(Range<f64>),
}

/// The same, counted from the server's start.
enum Due {
    Request(usize),
    Between(Range<Instant>),
}

#[derive(Default)]
struct State {
    directory: Option<PathBuf>,
    routes: HashMap<String, Route>,
    everything: Option<Reply>,
    faults: Vec<(Due, Reply)>,
    /// Requests that met one.
    met: usize,
    /// Requests that came, also those that were forgotten.
    came: usize,
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

    /// Whatever is asked for then gets this instead.
    pub fn fault(&self, when: When, reply: Reply) {
        let mut state = self.shared.state();
        let due = match when {
            When::Request(number) => Due::Request(state.came + number),
            When::Seconds(seconds) => {
                let at = |seconds| Instant::now() + Duration::from_secs_f64(seconds);
                Due::Between(at(seconds.start)..at(seconds.end))
            }
        };
        state.faults.push((due, reply));
    }

    /// How many requests met a fault so far.
    pub fn faults(&self) -> usize {
        self.shared.state().met
    }

    /// No more faults.
    pub fn heal(&self) {
        self.shared.state().faults.clear();
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
            let then = match tls.map(ServerConnection::new) {
                Some(Ok(mut tls)) => converse(rustls::Stream::new(&mut tls, &mut &stream), &shared),
                Some(Err(error)) => Err(io::Error::other(error)),
                None => converse(&stream, &shared),
            };
            match then {
                // Closed with bytes that nobody may wait for: the kernel sends RST.
                Ok(Then::Breaks) => {
                    let at_once = Some(Duration::ZERO);
                    let _ = rustix::net::sockopt::set_socket_linger(&stream, at_once);
                }
                _ => drop(stream.shutdown(Shutdown::Both)),
            }
            shared.state().streams.remove(&id);
        });
    }
}

/// One connection, plain or inside TLS.
fn converse(stream: impl Read + Write, shared: &Shared) -> io::Result<Then> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream)? {
        let number = {
            let mut state = shared.state();
            state.requests.push(request.clone());
            state.came += 1;
            state.came
        };
        let (reply, directory) = choose(&request, number, shared);
        let then = send(
            stream.get_mut(),
            &request,
            reply,
            directory,
            &shared.stopped,
        )?;
        stream.get_mut().flush()?;
        if then != Then::GoesOn {
            return Ok(then);
        }
    }
    Ok(Then::Ends)
}

fn choose(request: &Request, number: usize, shared: &Shared) -> (Reply, Option<PathBuf>) {
    let mut state = shared.state();
    let directory = state.directory.clone();
    if let Some(reply) = &state.everything {
        return (reply.clone(), directory);
    }
    let now = Instant::now();
    let fault = state.faults.iter().position(|(due, _)| match due {
        Due::Request(due) => *due == number,
        Due::Between(time) => time.contains(&now),
    });
    if let Some(at) = fault {
        state.met += 1;
        return (state.faults[at].1.clone(), directory);
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
