//! The first bytes of a NAR, without keeping it: its stream is dropped once they are unpacked.

use std::io::Read;

use super::decode::{self, DecodeError, Decoding};
use crate::{
    codec::{self, Checkpoint},
    nix::NarInfo,
    store::{Core, StoreError},
    substituter::{Deadline, FetchError, Substituter},
};

impl Core {
    /// The first `N` bytes of a cache's NAR.
    pub(in crate::store) async fn nar_head<const N: usize>(
        &self,
        substituter: &Substituter,
        narinfo: &NarInfo,
    ) -> Result<[u8; N], StoreError> {
        let path = &narinfo.store_path;
        let failed = |e| self.fetch_error(path, e);
        let deadline = Deadline::after(self.settings.read_timeout);
        let opened = substituter.nar(&narinfo.url, None, None, deadline).await;
        let mut body = opened.map_err(failed)?;
        let (format, size) = (narinfo.compression, narinfo.nar_size);
        let (mut feed, mut decoding) = Decoding::new(move |packed| {
            let mut head = [0; N];
            let mut reader = codec::stream(format, Box::new(packed), Checkpoint::START, size)?;
            reader.read_exact(&mut head).map_err(decode::decode_error)?;
            Ok::<_, DecodeError>(head)
        });
        let feeding = async {
            while let Some(chunk) = body.next().await? {
                self.counters.fetched.add(chunk.len() as u64);
                if !feed.chunk(chunk).await {
                    break;
                }
            }
            feed.end().await;
            Ok::<_, FetchError>(())
        };
        // Enough is there long before the end, and the rest may take its time.
        let decoded = tokio::select! {
            Some(decoded) = decoding.outcome() => Some(decoded),
            fed = feeding => {
                fed.map_err(failed)?;
                decoding.outcome().await
            }
        };
        match decoded {
            None => Err(StoreError::Stopping),
            Some(head) => head.map_err(|error| StoreError::Damaged {
                path: path.clone(),
                substituter: substituter.name().to_owned(),
                reason: error.to_string(),
            }),
        }
    }
}
