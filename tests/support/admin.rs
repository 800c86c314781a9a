//! Questions to a daemon's admin endpoint, with nothing but a socket.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::Value;

/// The status line and the body that came.
pub fn ask(mut stream: impl Read + Write, path: &str, host: &str) -> (String, String) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .expect("it takes questions");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.lines().next().expect("a status line");
    (status.to_owned(), body.to_owned())
}

/// What the socket of this state directory answers; it has to be a success.
pub fn get(state_dir: &Path, path: &str) -> String {
    let stream = UnixStream::connect(state_dir.join("admin.sock")).expect("it listens");
    let (status, body) = ask(stream, path, "narfs");
    assert!(status.contains(" 200 "), "{path}: {status}: {body}");
    body
}

/// The same, as JSON.
pub fn json(state_dir: &Path, path: &str) -> Value {
    let text = get(state_dir, path);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
}

/// Every series of `/metrics`, by its name with labels as it stands there.
pub fn metrics(state_dir: &Path) -> BTreeMap<String, f64> {
    let text = get(state_dir, "/metrics");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            let value = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            (series.to_owned(), value)
        })
        .collect()
}
