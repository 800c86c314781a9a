//! The calls as they come over the socket.

use prost::Message;
use tokio_stream::iter;
use tonic::{Code, Request, Response, Status, codegen::BoxStream};

use super::{
    error::SnapshotError,
    record::{self, Keyed, Moment, Record},
    snapshots::Snapshots as Core,
    wire::{
        CleanupRequest, CommitSnapshotRequest, Empty, Info, Kind, ListSnapshotsRequest,
        ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest,
        PrepareSnapshotResponse, RemoveSnapshotRequest, Snapshots, SnapshotsServer,
        StatSnapshotRequest, StatSnapshotResponse, Timestamp, UpdateSnapshotRequest,
        UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest,
        ViewSnapshotResponse,
    },
};

/// Largest message either way, in bytes: containerd's own limit. A layer of 5,000 store paths has
/// half a megabyte of labels.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Size in bytes from which on the next snapshots of a list go into the next message.
const PART: usize = 1 << 20;

/// The service for a set of snapshots.
pub fn service(snapshots: Core) -> SnapshotsServer<Service> {
    SnapshotsServer::new(Service(snapshots))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Answers calls.
pub struct Service(Core);

impl Service {
    /// Counts a call; writes to the log what failed otherwise than a client may expect, and turns it
    /// into a status.
    fn told<T>(
        &self,
        call: &'static str,
        key: &str,
        outcome: Result<T, SnapshotError>,
    ) -> Result<T, Status> {
        let outcome = outcome.map_err(|error| {
            let status = Status::from(error);
            match status.code() {
                Code::NotFound | Code::AlreadyExists | Code::InvalidArgument => {
                    tracing::debug!(call, key, error = status.message(), "refused");
                }
                code => tracing::warn!(call, key, ?code, error = status.message(), "failed"),
            }
            status
        });
        let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.0.0.calls.ended(call, code);
        outcome
    }
}

fn timestamp(moment: Moment) -> Timestamp {
    Timestamp {
        seconds: moment.seconds.try_into().unwrap_or(i64::MAX),
        nanos: moment.nanos.try_into().unwrap_or(0),
    }
}

fn info(key: &str, record: &Record) -> Info {
    let kind = match record.kind {
        record::Kind::Active => Kind::Active,
        record::Kind::View => Kind::View,
        record::Kind::Committed => Kind::Committed,
    };
    Info {
        name: key.into(),
        parent: record.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    }
}

/// A list in messages of a bearable size; an empty one is no message at all.
fn parts(found: Vec<Keyed>) -> Vec<ListSnapshotsResponse> {
    let mut parts: Vec<ListSnapshotsResponse> = Vec::new();
    let mut size = PART;
    for (key, record) in found {
        if size >= PART {
            parts.push(ListSnapshotsResponse::default());
            size = 0;
        }
        let info = info(&key, &record);
        size += info.encoded_len();
        if let Some(part) = parts.last_mut() {
            part.info.push(info);
        }
    }
    parts
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let mounts = self.told("Prepare", &key, self.0.prepare(&key, &parent, labels).await)?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let mounts = self.told("View", &key, self.0.view(&key, &parent, labels).await)?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self.told("Mounts", &key, self.0.mounts(&key).await)?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<Empty>, Status> {
        let CommitSnapshotRequest {
            name, key, labels, ..
        } = request.into_inner();
        self.told("Commit", &key, self.0.commit(&name, &key, labels).await)?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<Empty>, Status> {
        let key = request.into_inner().key;
        self.told("Remove", &key, self.0.remove(&key).await)?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let record = self.told("Stat", &key, self.0.stat(&key))?;
        let info = Some(info(&key, &record));
        Ok(Response::new(StatSnapshotResponse { info }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest {
            info: wanted,
            update_mask,
            ..
        } = request.into_inner();
        let Info { name, labels, .. } = wanted.unwrap_or_default();
        let fields = update_mask.unwrap_or_default().paths;
        let updated = self.0.update(&name, labels, fields).await;
        let info = Some(info(&name, &self.told("Update", &name, updated)?));
        Ok(Response::new(UpdateSnapshotResponse { info }))
    }

    type ListStream = BoxStream<ListSnapshotsResponse>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let found = self.told("List", "", self.0.list(&filters))?;
        let parts = iter(parts(found).into_iter().map(Ok));
        Ok(Response::new(Box::pin(parts)))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.told("Usage", &key, self.0.usage(&key).await)?;
        let number = |n: u64| n.try_into().unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse {
            size: number(usage.size),
            inodes: number(usage.inodes),
        }))
    }

    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Result<Response<Empty>, Status> {
        self.told("Cleanup", "", self.0.cleanup().await)?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::snapshotter::record::{Labels, SnapshotId, Usage};

    #[test]
    fn a_list_comes_in_parts() {
        let now = Moment::now();
        let record = Arc::new(Record {
            id: SnapshotId(1),
            kind: record::Kind::Committed,
            parent: None,
            labels: Labels::from([("a".into(), "x".repeat(PART / 4))]),
            created: now,
            updated: now,
            usage: Usage::default(),
            nix: None,
        });
        assert!(parts(Vec::new()).is_empty());
        let many = (0..10).map(|n| (Arc::from(format!("k{n}")), record.clone()));
        let parts = parts(many.collect());
        assert_eq!(parts.iter().map(|p| p.info.len()).sum::<usize>(), 10);
        assert!(parts.len() > 1 && parts.iter().all(|p| p.encoded_len() < 2 * PART));
    }
}
