//! A web server for one file that is too large to exist: its bytes are computed when a range of
//! them is asked for. Everything else comes from a directory.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

type Bytes = dyn Fn(Range<u64>) -> Vec<u8> + Send + Sync;

/// How much of the file is computed at a time, in bytes.
const PIECE: u64 = 1 << 20;

/// The server; it ends when it is dropped.
pub struct Generated {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    path: String,
    size: u64,
    bytes: Box<Bytes>,
    ranges: Mutex<Vec<Option<Range<u64>>>>,
    stopped: AtomicBool,
}

impl Generated {
    /// Serves `directory`, and at `path` (with its slash) `size` bytes that `bytes` computes.
    pub fn start(
        directory: PathBuf,
        path: &str,
        size: u64,
        bytes: impl Fn(Range<u64>) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            directory,
            path: path.to_owned(),
            size,
            bytes: Box::new(bytes),
            ranges: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.stopped.load(SeqCst) {
                    return;
                }
                let shared = serving.clone();
                // However the client leaves is its own business.
                thread::spawn(move || drop(converse(&stream, &shared)));
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The ranges of the large file that were asked for; `None` for the whole.
    pub fn ranges(&self) -> Vec<Option<Range<u64>>> {
        self.shared.ranges.lock().expect("no panic").clone()
    }
}

impl Drop for Generated {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn converse(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(first) = lines.next() {
        let path = first?.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        for line in lines.by_ref() {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(asked) = line.strip_prefix("range: bytes=") {
                range = parse(asked, shared.size);
            }
        }
        let mut out = stream;
        if path == shared.path {
            shared.ranges.lock().expect("no panic").push(range.clone());
            send_range(&mut out, shared, range)?;
            continue;
        }
        match fs::read(shared.directory.join(&path[1..])) {
            Ok(bytes) => {
                write!(
                    out,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    bytes.len()
                )?;
                out.write_all(&bytes)?;
            }
            Err(_) => write!(out, "HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
    Ok(())
}

/// `5-9`, `5-`, or `-5` for the last five.
fn parse(text: &str, size: u64) -> Option<Range<u64>> {
    let (from, to) = text.trim().split_once('-')?;
    match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) => Some(from..size.min(to + 1)),
        (Ok(from), Err(_)) => Some(from..size),
        (Err(_), Ok(last)) => Some(size.saturating_sub(last)..size),
        _ => None,
    }
}

fn send_range(out: &mut impl Write, shared: &Shared, range: Option<Range<u64>>) -> io::Result<()> {
    let size = shared.size;
    match &range {
        Some(range) => write!(
            out,
            "HTTP/1.1 206 Part\r\nContent-Range: bytes {}-{}/{size}\r\n",
            range.start,
            range.end - 1
        )?,
        None => write!(out, "HTTP/1.1 200 OK\r\n")?,
    }
    let range = range.unwrap_or(0..size);
    let length = range.end - range.start;
    write!(out, "ETag: \"one\"\r\nContent-Length: {length}\r\n\r\n")?;
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + PIECE);
        out.write_all(&(shared.bytes)(at..end))?;
        at = end;
    }
    out.flush()
}
