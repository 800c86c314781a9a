//! What a kubelet says to containerd: as much of the CRI, version 1, as one pod needs. Messages and
//! field numbers are those of Kubernetes' `runtime/v1/api.proto`.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{path::Path, time::Duration};

use prost::Message;
use tokio::runtime::Runtime;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The host's own, for a namespace of a pod.
const NODE: i32 = 2;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// `ContainerState` of a container whose process ended.
pub const EXITED: i32 = 2;

/// A connection.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    pub fn connect(socket: &Path) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()));
        let endpoint = endpoint.expect("a path").timeout(PATIENCE);
        let channel = runtime
            .block_on(endpoint.connect())
            .expect("containerd listens");
        Self { runtime, channel }
    }

    fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::from_static(path);
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.unary(Request::new(question), path, codec).await?;
            Ok(answer.into_inner())
        })
    }

    /// Pulls an image, as a kubelet does before it makes a container.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        let question = PullImage {
            image: Some(ImageSpec::named(image)),
        };
        let answer: PullImageAnswer = self.call("/runtime.v1.ImageService/PullImage", question)?;
        Ok(answer.image)
    }

    /// A pod in the host's network; its control groups are below `/GROUP`.
    pub fn pod(&self, name: &str, group: &str, logs: &Path) -> Result<Pod<'_>, Status> {
        let namespaces = Namespaces {
            network: NODE,
            pid: 0,
            ipc: 0,
        };
        let config = PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPod {
                cgroup_parent: format!("/{group}"),
                security_context: Some(LinuxSecurity {
                    namespaces: Some(namespaces),
                }),
            }),
        };
        let question = RunPod {
            config: Some(config.clone()),
        };
        let answer: PodId = self.call("/runtime.v1.RuntimeService/RunPodSandbox", question)?;
        Ok(Pod {
            cri: self,
            id: answer.id,
            config,
        })
    }
}

/// A pod that runs; dropped, it is stopped and removed.
pub struct Pod<'c> {
    cri: &'c Cri,
    pub id: String,
    config: PodConfig,
}

impl Pod<'_> {
    /// Makes and starts a container; its identity.
    pub fn start(&self, name: &str, image: &str, arguments: &[&str]) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
            }),
            image: Some(ImageSpec::named(image)),
            args: arguments.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}.log"),
        };
        let question = CreateContainer {
            pod: self.id.clone(),
            config: Some(config),
            pod_config: Some(self.config.clone()),
        };
        let service = "/runtime.v1.RuntimeService/CreateContainer";
        let made: ContainerId = self.cri.call(service, question)?;
        let service = "/runtime.v1.RuntimeService/StartContainer";
        self.cri.call::<_, Nothing>(service, made.clone())?;
        Ok(made.id)
    }

    /// State and exit status of a container.
    pub fn status(&self, container: &str) -> Result<(i32, i32), Status> {
        let question = ContainerId {
            id: container.to_owned(),
        };
        let service = "/runtime.v1.RuntimeService/ContainerStatus";
        let answer: StatusAnswer = self.cri.call(service, question)?;
        let status = answer.status.unwrap_or_default();
        Ok((status.state, status.exit_code))
    }

    /// Runs something in a container; what it printed, and its exit status.
    pub fn exec(&self, container: &str, words: &[&str]) -> Result<(String, i32), Status> {
        let question = Exec {
            container: container.to_owned(),
            command: words.iter().map(|&word| word.to_owned()).collect(),
            timeout: PATIENCE.as_secs().cast_signed(),
        };
        let answer: ExecAnswer = self
            .cri
            .call("/runtime.v1.RuntimeService/ExecSync", question)?;
        let output = [answer.stdout, answer.stderr].concat();
        Ok((
            String::from_utf8_lossy(&output).into_owned(),
            answer.exit_code,
        ))
    }

    /// Stops and removes it.
    pub fn remove(self) -> Result<(), Status> {
        self.take_down()
    }

    fn take_down(&self) -> Result<(), Status> {
        let pod = || PodId {
            id: self.id.clone(),
        };
        let service = "/runtime.v1.RuntimeService/StopPodSandbox";
        self.cri.call::<_, Nothing>(service, pod())?;
        let service = "/runtime.v1.RuntimeService/RemovePodSandbox";
        self.cri.call::<_, Nothing>(service, pod())?;
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // Removing what is removed is no error in the CRI; whoever wants to know calls `remove`.
        let _ = self.take_down();
    }
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

impl ImageSpec {
    fn named(image: &str) -> Self {
        Self {
            image: image.to_owned(),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageAnswer {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
    #[prost(int32, tag = "3")]
    ipc: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPod {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPod>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "4")]
    args: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatus {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int32, tag = "7")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct Exec {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecAnswer {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}
