//! From compressed bytes to a NAR on disk: two threads for a stream, from its first bytes on.
//!
//! The first decompresses, holds the structure against the tree and writes; the second hashes.
//! So a stream runs at the speed of the slower of the two, and a reader is answered before its
//! bytes are hashed.

use std::{
    io::{self, Read},
    sync::{Arc, mpsc as sync_mpsc},
    time::Instant,
};

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};

use super::{Check, Nar, Source};
use crate::{
    codec::{self, Checkpoint, CodecError},
    content::ContentError,
    nix::{NarHash, NarHasher},
    store::cannot_keep,
    tree::{NarError, NarIndexer, SkeletonCheck},
};

/// Most that is decompressed before it is written and its readers are answered, in bytes.
const PIECE: usize = 128 * 1024;
/// Pieces the hashing thread may be behind: 2 MiB.
const HASH_QUEUE: usize = 16;
/// Compressed chunks between the network and the decoder; each at most what the HTTP client
/// hands out at once (tens of KiB).
const PACKED_QUEUE: usize = 64;

/// What travels from the download to the decoder.
enum Packed {
    Chunk(Bytes),
    End,
}

/// The download's end of the queue.
pub(crate) struct Feed {
    queue: mpsc::Sender<Packed>,
    /// Starts the decoder, if it waits for that.
    begin: Option<Box<dyn FnOnce() + Send>>,
}

impl Feed {
    /// Hands over the next chunk; false when the decoder stopped.
    pub async fn chunk(&mut self, bytes: Bytes) -> bool {
        self.send(Packed::Chunk(bytes)).await
    }

    /// Says that the file is complete. A feed dropped without it is a cut-off.
    pub async fn end(mut self) {
        // A decoder that stopped before has its own error to tell.
        let _ = self.send(Packed::End).await;
    }

    async fn send(&mut self, packed: Packed) -> bool {
        if let Some(begin) = self.begin.take() {
            begin();
        }
        self.queue.send(packed).await.is_ok()
    }
}

/// A decoder on a thread of its own, which begins with the first bytes: a stream that waits for its
/// turn, or for a cache, holds none. None of the runtime's either: those are few, and streams that
/// hang would keep them from everybody else.
pub(super) struct Decoding<T>(oneshot::Receiver<T>);

impl<T: Send + 'static> Decoding<T> {
    pub(super) fn new(work: impl FnOnce(PackedReader) -> T + Send + 'static) -> (Feed, Self) {
        let (mut feed, packed) = channel();
        let (done, outcome) = oneshot::channel();
        feed.begin = Some(Box::new(move || {
            // Nobody waits any more: then nobody needs the outcome.
            let run = move || drop(done.send(work(packed)));
            let thread = std::thread::Builder::new().name("narfs-decode".into());
            if let Err(error) = thread.spawn(run) {
                tracing::error!(%error, "the system gives no thread to decode with");
            }
        }));
        (feed, Self(outcome))
    }

    /// What the work gave; `None` if it never began, or died.
    pub(super) async fn outcome(&mut self) -> Option<T> {
        match self.0.is_terminated() {
            // It was asked for before.
            true => None,
            false => (&mut self.0).await.ok(),
        }
    }
}

/// The decoder's end: a blocking reader.
pub(crate) struct PackedReader {
    queue: mpsc::Receiver<Packed>,
    chunk: Bytes,
    ended: bool,
}

pub(crate) fn channel() -> (Feed, PackedReader) {
    let (tx, queue) = mpsc::channel(PACKED_QUEUE);
    (
        Feed {
            queue: tx,
            begin: None,
        },
        PackedReader {
            queue,
            chunk: Bytes::new(),
            ended: false,
        },
    )
}

impl Read for PackedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.queue.blocking_recv() {
                Some(Packed::Chunk(chunk)) => self.chunk = chunk,
                Some(Packed::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the download stopped",
                    ));
                }
            }
        }
        let n = buf.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// Why a stream can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("it is cut off")]
    CutOff,
    #[error("{0}")]
    TreeWrong(String),
    #[error(transparent)]
    NotNar(#[from] NarError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("a thread of the decoder died, or could not be started")]
    Died,
}

/// What came out of a whole stream.
pub(super) struct Decoded {
    /// Its hash, if it was decoded from the start.
    pub hash: Option<NarHash>,
    /// The tree compiled from it, if that was asked for.
    pub index: Option<Vec<u8>>,
    /// Whether everything is on disk.
    pub kept: bool,
    /// Whether some of what is on disk was there before, and so was not hashed.
    pub mixed: bool,
}

/// Decodes `packed` from `at` to the NAR's end. Blocks; runs on a thread of its own.
pub(super) fn run(
    nar: &Nar,
    source: &Source,
    packed: PackedReader,
    at: Checkpoint,
    check: Check,
) -> Result<Decoded, DecodeError> {
    let (used, spare) = sync_mpsc::channel();
    let (pieces, hashing) = hasher(at, &check, nar.hash, used).map_err(|_| DecodeError::Died)?;
    let result = decode(nar, source, packed, at, &check, &pieces, &spare);
    drop(pieces);
    let hashed = hashing.join().map_err(|_| DecodeError::Died)?;
    let (kept, mixed) = result?;
    let (hash, index) = hashed?;
    Ok(Decoded {
        hash,
        index,
        kept,
        mixed,
    })
}

fn decode(
    nar: &Nar,
    source: &Source,
    packed: PackedReader,
    at: Checkpoint,
    check: &Check,
    pieces: &sync_mpsc::SyncSender<Vec<u8>>,
    spare: &sync_mpsc::Receiver<Vec<u8>>,
) -> Result<(bool, bool), DecodeError> {
    let mut reader = codec::stream(source.compression, Box::new(packed), at, nar.size)?;
    let mut skeleton = match check {
        Check::Against(tree) => Some(SkeletonCheck::new(tree.clone(), at.nar)),
        Check::Index => None,
    };
    let mut pos = at.nar;
    let mut checkpoint = Some(at);
    let generation = nar.file.generation();
    let (mut kept, mut mixed) = (true, false);
    loop {
        let mut piece = spare.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let n = match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(decode_error(e)),
        };
        piece.truncate(n);
        if let Some(skeleton) = &mut skeleton {
            skeleton
                .push(&piece)
                .map_err(|e| DecodeError::TreeWrong(e.to_string()))?;
        }
        let piece_range = pos..pos + n as u64;
        mixed |= nar.file.missing(piece_range.clone()) != std::slice::from_ref(&piece_range);
        match nar.file.write_at_generation(generation, &piece, pos) {
            Ok(()) => {
                nar.record_arrival(pos, n);
                nar.note_progress();
            }
            Err(e) if cannot_keep(&e) => {
                if kept {
                    tracing::warn!(path = %nar.path, error = %e, "served without being kept");
                }
                kept = false;
                nar.note_progress();
            }
            Err(e) => return Err(e.into()),
        }
        if reader.checkpoint() != checkpoint {
            checkpoint = reader.checkpoint();
            if let Some(point) = checkpoint {
                source.add_checkpoint(&nar.file, point);
            }
        }
        // Where the tree itself is in question, an offset says nothing until the end.
        if skeleton.is_some() {
            if kept {
                nar.answer_satisfied()
            } else {
                nar.answer_unkept(pos, &piece)
            }
        }
        pos += n as u64;
        if pieces.send(piece).is_err() {
            // The hashing thread stopped: it found that this is no NAR, and says so when joined.
            return Ok((kept, mixed));
        }
    }
    if let Some(skeleton) = skeleton {
        skeleton
            .finish()
            .map_err(|e| DecodeError::TreeWrong(e.to_string()))?;
    }
    Ok((kept, mixed))
}

type Hashed = Result<(Option<NarHash>, Option<Vec<u8>>), DecodeError>;

/// Starts the thread that hashes and, without a tree, indexes.
fn hasher(
    at: Checkpoint,
    check: &Check,
    nar_hash: NarHash,
    used: sync_mpsc::Sender<Vec<u8>>,
) -> io::Result<(
    sync_mpsc::SyncSender<Vec<u8>>,
    std::thread::JoinHandle<Hashed>,
)> {
    let (tx, rx) = sync_mpsc::sync_channel::<Vec<u8>>(HASH_QUEUE);
    let from_start = at.nar == 0;
    let mut indexer = matches!(check, Check::Index).then(NarIndexer::new);
    let thread = std::thread::Builder::new().name("narfs-hash".into());
    let thread = thread.spawn(move || {
        let begun = Instant::now();
        let mut hasher = NarHasher::new();
        let mut bytes = 0u64;
        for piece in rx {
            if from_start {
                hasher.update(&piece);
            }
            if let Some(indexer) = &mut indexer {
                indexer.push(&piece)?;
            }
            bytes += piece.len() as u64;
            // The decoder may have ended; then nobody needs the buffer.
            let _ = used.send(piece);
        }
        tracing::trace!(bytes, seconds = begun.elapsed().as_secs_f64(), "hashed");
        let index = indexer.map(|i| i.finish(nar_hash)).transpose()?;
        Ok((from_start.then(|| hasher.finish()), index))
    })?;
    Ok((tx, thread))
}

pub(super) fn decode_error(e: io::Error) -> DecodeError {
    if e.kind() == io::ErrorKind::ConnectionAborted {
        return DecodeError::CutOff;
    }
    match e.downcast::<CodecError>() {
        Ok(codec) => DecodeError::Codec(codec),
        Err(other) => DecodeError::Codec(CodecError::from(other)),
    }
}

/// Keeps the tree alive only as long as the check does.
impl Check {
    pub(super) fn tree(&self) -> Option<&Arc<crate::tree::Tree>> {
        match self {
            Check::Against(tree) => Some(tree),
            Check::Index => None,
        }
    }
}
