//! The packed bytes on their way to a decoder: buffered, with an exact position.

use std::io::{self, BufRead, Read};

/// Bytes asked of the source at a time. zstd's own recommendation is one block (128 KiB) and its
/// header; the other decoders take anything.
const BUFFER: usize = 128 * 1024 + 16;

/// A buffered source that knows how many packed bytes the decoder has taken from it.
pub(super) struct Input<'a> {
    source: Box<dyn Read + Send + 'a>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    position: u64,
    ended: bool,
    failed: bool,
}

impl<'a> Input<'a> {
    /// A source whose first byte is byte `position` of the packed file.
    pub(super) fn new(source: Box<dyn Read + Send + 'a>, position: u64) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self {
            source,
            buffer,
            start: 0,
            end: 0,
            position,
            ended: false,
            failed: false,
        }
    }

    /// What stands in for an input while a decoder has it. Costs no memory.
    pub(super) fn empty() -> Self {
        Self {
            source: Box::new(io::empty()),
            buffer: Box::default(),
            start: 0,
            end: 0,
            position: 0,
            ended: true,
            failed: false,
        }
    }

    /// Offset in the packed file of the next byte that a decoder would get.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// What is buffered; never waits for the source.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether somebody met the end of the source.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether the source itself failed, as opposed to a decoder that dislikes what it got.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    fn more(&mut self) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    // A source that claims more than it was offered must not become a panic later.
                    let n = n.min(self.buffer.len() - self.end);
                    self.end += n;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
            return Ok(0);
        }
    }

    /// The next bytes without taking them, `n` of them unless the source ends before that.
    /// `n` is a few bytes: a magic number.
    pub(super) fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        if self.start + n > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < n && self.more()? > 0 {}
        let end = self.end.min(self.start + n);
        Ok(&self.buffer[self.start..end])
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.more()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
        self.position += n as u64;
        debug_assert!(self.start <= self.end);
    }
}

impl Read for Input<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let n = bytes.len().min(out.len());
        out[..n].copy_from_slice(&bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}
