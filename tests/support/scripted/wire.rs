//! HTTP/1.1 as far as the scripted server speaks it, on purpose not better than told.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufRead, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use super::reply::{Body, Length, Reply, Request};

pub(super) fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
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

/// What becomes of the connection behind a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    GoesOn,
    Ends,
    /// RST, and what was not sent yet is lost.
    Breaks,
}

/// Sends a reply.
pub(super) fn send(
    stream: &mut impl Write,
    request: &Request,
    mut reply: Reply,
    directory: Option<PathBuf>,
    stopped: &AtomicBool,
) -> io::Result<Then> {
    thread::sleep(reply.delay);
    if let Some(gate) = &reply.before {
        gate.pass(stopped);
    }
    if reply.reset && reply.cut.is_none() {
        return Ok(Then::Breaks);
    }
    if stopped.load(SeqCst) {
        return Ok(Then::Ends);
    }
    let mut bytes = match &reply.body {
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
    if let Some(at) = reply.corrupt
        && (at as usize) < bytes.len()
    {
        // Under the right file's ETag: nobody meant it.
        reply.etag.get_or_insert(Some(content_etag(&bytes)));
        Arc::make_mut(&mut bytes)[at as usize] ^= 0xFF;
    }
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
    let mut then = Then::GoesOn;
    match reply.length {
        Length::Right => head.push(("Content-Length".into(), part.len().to_string())),
        Length::Chunked => head.push(("Transfer-Encoding".into(), "chunked".into())),
        Length::Claimed(length) => {
            head.push(("Content-Length".into(), length.to_string()));
            then = Then::Ends;
        }
        Length::Unsaid => {
            head.push(("Connection".into(), "close".into()));
            then = Then::Ends;
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
            gate.pass(stopped);
        }
        if sent == cut || stopped.load(SeqCst) {
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
    if reply.reset {
        stream.flush()?;
        return Ok(Then::Breaks);
    }
    if sent < part.len() {
        return Ok(Then::Ends);
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(then)
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
