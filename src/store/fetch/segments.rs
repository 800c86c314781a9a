//! A long file asked for in segments, each while the one before arrives.
//!
//! What a server has begun to send stands in front of everybody else's answers, whoever waits by
//! then: in the buffers along the way, up to megabytes of it. A file that is asked for in
//! segments holds the link for no longer than a segment, and the next segment's request travels
//! while this one arrives, so that nothing is lost by it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::Source;
use crate::{
    store::Lane,
    substituter::{Deadline, FetchError, NarBody},
    trace,
};

/// Files up to this are asked for in one go, in bytes: what stands in front of others is little, and a request more
/// is a round trip more where the next segment comes late.
const IN_ONE_GO: u64 = 8 << 20;
/// First segment, and every one that nobody waits for, in bytes: at 200 Mbit/s, 40 ms.
const SMALLEST: u64 = 1 << 20;
/// Largest segment, in bytes. Two of them under way fill a link of 1 Gbit/s and 60 ms.
const LARGEST: u64 = 4 << 20;

/// A stream with so few bytes to come ends soon, in bytes: at 200 Mbit/s, in 20 ms.
const LAST_BYTES: u64 = 512 << 10;
/// That is said of files from here on, in bytes: a smaller one as a whole is as good as its last bytes.
const HAS_LAST_BYTES: u64 = 4 * LAST_BYTES;

/// A file from some offset on, as one body.
pub(super) struct Segments {
    source: Arc<Source>,
    body: NarBody,
    /// End of the body that comes, and of the file, where they are known.
    end: Option<u64>,
    total: Option<u64>,
    /// Bytes of `body` that have come.
    got: u64,
    size: u64,
    validator: Option<String>,
    ahead: Option<JoinHandle<Result<NarBody, FetchError>>>,
    patience: std::time::Duration,
    /// For whom it asks, in the record.
    behalf: Option<trace::Behalf>,
}

impl Segments {
    /// Asks for the file from `offset` on.
    ///
    /// # Errors
    /// Of the first request; later ones come from [`Segments::next`].
    pub async fn open(
        source: &Arc<Source>,
        offset: u64,
        validator: Option<String>,
        patience: std::time::Duration,
    ) -> Result<Self, FetchError> {
        // Where the narinfo does not say how long it is, it is asked for in one go too.
        let whole = source.no_ranges()
            || source
                .file_size
                .is_none_or(|size| size.saturating_sub(offset) <= IN_ONE_GO);
        let end = if whole { u64::MAX } else { offset + SMALLEST };
        let body = source
            .open(offset..end, validator.clone(), Deadline::after(patience))
            .await?;
        let mut segments = Self {
            source: source.clone(),
            body,
            end: None,
            total: None,
            got: 0,
            size: SMALLEST,
            validator,
            ahead: None,
            patience,
            behalf: trace::behalf(),
        };
        segments.look_at_body();
        Ok(segments)
    }

    /// Offset in the file of the first byte that came: 0 if the server knows no ranges.
    pub fn start(&self) -> u64 {
        self.body.start
    }

    /// What comes now is fetched in this lane.
    pub fn in_lane(&mut self, lane: Lane) {
        self.body.in_lane(lane.as_str());
    }

    /// What tells this very file from another under the same name.
    pub fn validator(&self) -> Option<&String> {
        self.validator.as_ref()
    }

    fn look_at_body(&mut self) {
        self.end = self.body.coming().map(|range| range.end);
        self.total = self.body.total;
        self.got = 0;
        if let Some(validator) = self.body.validator.take() {
            self.validator = Some(validator);
        }
    }

    /// Whether the last bytes are on the way: who is asked for now begins to come when they have come.
    pub fn ends_soon(&self) -> bool {
        self.total.is_some_and(|total| {
            total >= HAS_LAST_BYTES
                && total.saturating_sub(self.body.start + self.got) <= LAST_BYTES
        })
    }

    /// Where the next segment begins; `None` if this is the last.
    fn next_start(&self) -> Option<u64> {
        self.end
            .zip(self.total)
            .filter(|(end, total)| end < total)
            .map(|(end, _)| end)
    }

    /// The next bytes; `None` at the file's end. With `ahead`, the next segment may be asked for;
    /// `waited_for`, it may be a large one.
    ///
    /// # Errors
    /// Of this segment or the next; what came before is good.
    pub async fn next(
        &mut self,
        ahead: bool,
        waited_for: bool,
    ) -> Result<Option<Bytes>, FetchError> {
        loop {
            let left = self
                .end
                .map_or(0, |end| end.saturating_sub(self.body.start + self.got));
            // Somebody waits: the next one is asked for as this one begins to come, so that the
            // round trip fits into it. Nobody does: when half of it has come, to hold less.
            let due = if waited_for {
                self.got > 0
            } else {
                left <= self.size / 2
            };
            if ahead && due {
                self.ask_ahead(waited_for);
            }
            if let Some(chunk) = self.body.next().await? {
                self.got += chunk.len() as u64;
                return Ok(Some(chunk));
            }
            let Some(start) = self.next_start() else {
                return Ok(None);
            };
            self.ask_ahead(waited_for);
            let Some(asked) = &mut self.ahead else {
                return Ok(None);
            };
            let body = match asked.await {
                Ok(body) => body,
                // Only the runtime's end cancels it: then nobody waits for the rest.
                Err(_) => {
                    return Err(self.source.substituter.cut_off(
                        &self.source.url,
                        start,
                        self.size,
                    ));
                }
            };
            self.ahead = None;
            let body = body?;
            if body.start != start {
                // A server that stopped to know ranges in the middle of a file: begin again.
                return Err(self
                    .source
                    .substituter
                    .cut_off(&self.source.url, start, self.size));
            }
            self.body = body;
            self.look_at_body();
        }
    }

    /// Sends the request for the next segment, unless there is none or it is under way.
    fn ask_ahead(&mut self, waited_for: bool) {
        let Some(start) = self.next_start() else {
            return;
        };
        if self.ahead.is_some() {
            return;
        }
        self.size = if waited_for {
            (self.size * 2).min(LARGEST)
        } else {
            SMALLEST
        };
        let (source, validator) = (self.source.clone(), self.validator.clone());
        let (range, patience) = (start..start + self.size, self.patience);
        let behalf = self.behalf.clone();
        self.ahead = Some(tokio::spawn(async move {
            let open = source.open(range, validator, Deadline::after(patience));
            trace::carry_on(behalf, open).await
        }));
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        if let Some(asked) = &self.ahead {
            asked.abort();
        }
    }
}
