//! The ten calls of `containerd.services.snapshots.v1`, as functions that wait for their answers.
//! Any number of threads may call at the same time; every call is bounded.

use std::{collections::HashMap, future::Future, path::Path, sync::Mutex, time::Duration};

use narfs::snapshotter::wire::{
    CleanupRequest, CommitSnapshotRequest, FieldMask, Info, ListSnapshotsRequest, Mount,
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, SnapshotsClient,
    StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, UsageResponse, ViewSnapshotRequest,
};
use tokio::runtime::Handle;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use super::PATIENCE;

/// Labels of a snapshot.
pub type Labels = HashMap<String, String>;

/// Labels from pairs.
pub fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// A client.
pub struct Calls {
    client: SnapshotsClient<Channel>,
    handle: Option<Handle>,
    /// What goes along as containerd's namespace.
    namespace: Mutex<Option<String>>,
}

impl Calls {
    /// Of a socket that may not be there yet.
    pub(super) async fn to(socket: &Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let channel = endpoint.expect("the address of a socket").connect_lazy();
        Self {
            client: SnapshotsClient::new(channel)
                .max_decoding_message_size(16 << 20)
                .max_encoding_message_size(16 << 20),
            handle: None,
            namespace: Mutex::default(),
        }
    }

    pub(super) fn on(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// From now on every call says that it comes from this namespace.
    pub fn in_namespace(&self, namespace: &str) {
        *self.namespace.lock().expect("not poisoned") = Some(namespace.to_owned());
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(name) = &*self.namespace.lock().expect("not poisoned") {
            let value = name.parse().expect("a header's value");
            request.metadata_mut().insert("containerd-namespace", value);
        }
        request
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let handle = self.handle.as_ref().expect("it has a runtime");
        handle.block_on(async {
            let answer = tokio::time::timeout(PATIENCE, answer).await;
            answer.expect("a call hangs")
        })
    }

    fn call<T>(
        &self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.wait(async { answer.await.map(Response::into_inner) })
    }

    pub fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let message = PrepareSnapshotRequest {
            key: key.into(),
            parent: parent.into(),
            labels,
            ..Default::default()
        };
        let mut client = self.client.clone();
        Ok(self.call(client.prepare(self.request(message)))?.mounts)
    }

    /// Prepares, and goes away when there is no answer for so long.
    pub fn prepare_impatiently(&self, key: &str, labels: Labels, patience: Duration) {
        let message = PrepareSnapshotRequest {
            key: key.into(),
            labels,
            ..Default::default()
        };
        let mut client = self.client.clone();
        let request = self.request(message);
        let answer = self.wait(async {
            Ok(tokio::time::timeout(patience, client.prepare(request))
                .await
                .is_ok())
        });
        assert!(
            !answer.expect("never an error"),
            "{key} was answered in time"
        );
    }

    pub fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let message = ViewSnapshotRequest {
            key: key.into(),
            parent: parent.into(),
            labels,
            ..Default::default()
        };
        let mut client = self.client.clone();
        Ok(self.call(client.view(self.request(message)))?.mounts)
    }

    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let message = MountsRequest {
            key: key.into(),
            ..Default::default()
        };
        let mut client = self.client.clone();
        Ok(self.call(client.mounts(self.request(message)))?.mounts)
    }

    pub fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Status> {
        let message = CommitSnapshotRequest {
            name: name.into(),
            key: key.into(),
            labels,
            ..Default::default()
        };
        self.call(self.client.clone().commit(self.request(message)))
    }

    pub fn remove(&self, key: &str) -> Result<(), Status> {
        let message = RemoveSnapshotRequest {
            key: key.into(),
            ..Default::default()
        };
        self.call(self.client.clone().remove(self.request(message)))
    }

    pub fn stat(&self, key: &str) -> Result<Info, Status> {
        let message = StatSnapshotRequest {
            key: key.into(),
            ..Default::default()
        };
        let mut client = self.client.clone();
        let answer = self.call(client.stat(self.request(message)))?;
        Ok(answer.info.expect("every answer has it"))
    }

    /// Changes what `fields` names; without fields everything that can change.
    pub fn update(&self, info: Info, fields: &[&str]) -> Result<Info, Status> {
        let paths: Vec<_> = fields.iter().map(|field| field.to_string()).collect();
        let message = UpdateSnapshotRequest {
            info: Some(info),
            update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
            ..Default::default()
        };
        let mut client = self.client.clone();
        let answer = self.call(client.update(self.request(message)))?;
        Ok(answer.info.expect("every answer has it"))
    }

    pub fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let message = ListSnapshotsRequest {
            filters: filters.iter().map(|filter| filter.to_string()).collect(),
            ..Default::default()
        };
        let mut client = self.client.clone();
        let request = self.request(message);
        self.wait(async {
            let mut parts = client.list(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(part) = parts.message().await? {
                all.extend(part.info);
            }
            Ok(all)
        })
    }

    /// Names of what [`Calls::list`] finds, sorted.
    pub fn listed(&self, filters: &[&str]) -> Vec<String> {
        let found = self.list(filters).expect("filters that can be read");
        let mut names: Vec<_> = found.into_iter().map(|info| info.name).collect();
        names.sort();
        names
    }

    pub fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let message = UsageRequest {
            key: key.into(),
            ..Default::default()
        };
        self.call(self.client.clone().usage(self.request(message)))
    }

    pub fn cleanup(&self) -> Result<(), Status> {
        let message = CleanupRequest::default();
        self.call(self.client.clone().cleanup(self.request(message)))
    }
}
