//! A client of the Container Runtime Interface, as small as the tests need it: curl speaks HTTP/2 over the socket, the messages
//! are encoded here.
//!
//! Debian 12 has no crictl. python3-grpcio would need the same encoding by hand, and tonic some eighty crates and a compiler for
//! protocol files; curl is there anyway.
//!
//! Sources: field numbers from Kubernetes, `cri-api/pkg/apis/runtime/v1/api.proto`; framing from gRPC, "gRPC over HTTP2"; messages
//! from Protocol Buffers, "Encoding".

use std::fs;

use sandbox::RuntimeNode;

/// The CRI of the runtime that listens on a socket.
pub struct Cri<'a> {
    node: &'a RuntimeNode,
    socket: String,
}

/// A pod that runs.
pub struct Pod {
    /// What the runtime calls it, and what plugins get as `CNI_CONTAINERID`.
    pub id: String,
    /// PodSandboxConfig: every container of the pod needs it again.
    config: Message,
}

/// A container that runs in a pod.
pub struct Container {
    id: String,
}

impl<'a> Cri<'a> {
    /// A client for the runtime on `node` that listens on `socket`.
    pub fn new(node: &'a RuntimeNode, socket: &str) -> Self {
        let socket = socket.to_owned();
        Self { node, socket }
    }

    /// Status: the runtime's conditions, and whether each is met.
    pub fn conditions(&self) -> Vec<(String, bool)> {
        let status = self.call("Status", Message::default()).message(1);
        // What is false is left out, and reads as zero.
        let condition = |message: &Message| (message.text(1), message.number(2) == 1);
        status.messages(1).iter().map(condition).collect()
    }

    /// RunPodSandbox: makes a pod and attaches it to the network.
    pub fn run_pod(&self, name: &str) -> Pod {
        self.run_pod_with_ports(name, &[])
    }

    /// RunPodSandbox with host ports and the ports of the pod, by TCP.
    pub fn run_pod_with_ports(&self, name: &str, ports: &[(u64, u64)]) -> Pod {
        self.run_pod_with(name, ports, &[])
    }

    /// RunPodSandbox with host ports, and annotations as the kubelet passes them.
    pub fn run_pod_with(
        &self,
        name: &str,
        ports: &[(u64, u64)],
        annotations: &[(&str, &str)],
    ) -> Pod {
        let metadata = Message::default()
            .with_text(1, name)
            .with_text(2, name)
            .with_text(3, "default");
        let linux = Message::default().with_text(1, &self.node.cgroup());
        let config = Message::default()
            .with_message(1, &metadata)
            .with_text(2, name)
            .with_text(3, &self.node.path("logs"))
            .with_message(8, &linux);
        let config = ports.iter().fold(config, |config, (host, container)| {
            // Protocol 0, TCP, is left out.
            let mapping = Message::default().with_number(2, *container);
            config.with_message(5, &mapping.with_number(3, *host))
        });
        let config = annotations.iter().fold(config, |config, (key, value)| {
            let entry = Message::default().with_text(1, key);
            config.with_message(7, &entry.with_text(2, value))
        });
        let answer = self.call("RunPodSandbox", Message::default().with_message(1, &config));
        let id = answer.text(1);
        Pod { id, config }
    }

    /// PodSandboxStatus: the pod's address.
    pub fn address(&self, pod: &Pod) -> String {
        let status = self
            .call("PodSandboxStatus", identified(&pod.id))
            .message(1);
        status.message(5).text(1)
    }

    /// CreateContainer and StartContainer: the image's own command, in a pod.
    pub fn run_container(&self, pod: &Pod, image: &str) -> Container {
        let metadata = Message::default().with_text(1, "container");
        let image = Message::default().with_text(1, image);
        let config = Message::default()
            .with_message(1, &metadata)
            .with_message(2, &image);
        let request = identified(&pod.id)
            .with_message(2, &config)
            .with_message(3, &pod.config);
        let id = self.call("CreateContainer", request).text(1);
        self.call("StartContainer", identified(&id));
        Container { id }
    }

    /// ExecSync: runs a program in a container that must succeed, and returns what it printed.
    #[track_caller]
    pub fn exec(&self, container: &Container, argv: &[&str]) -> String {
        let request = argv.iter().fold(identified(&container.id), |request, arg| {
            request.with_text(2, arg)
        });
        let answer = self.call("ExecSync", request.with_number(3, 10));
        let (printed, complaint, status) = (answer.text(1), answer.text(2), answer.number(3));
        assert!(
            status == 0,
            "{argv:?} exited with {status} in the container: {printed}{complaint}"
        );
        printed
    }

    /// StopPodSandbox: ends the pod's containers and detaches it.
    pub fn stop(&self, pod: &Pod) {
        self.call("StopPodSandbox", identified(&pod.id));
    }

    /// RemovePodSandbox: detaches the pod once more and forgets it.
    pub fn remove(&self, pod: &Pod) {
        self.call("RemovePodSandbox", identified(&pod.id));
    }

    /// One call. Any status but OK fails the test with the runtime's words.
    #[track_caller]
    fn call(&self, method: &str, request: Message) -> Message {
        let length = u32::try_from(request.0.len()).expect("a small message");
        // "Not compressed", the length, the message.
        let frame = [&[0], &length.to_be_bytes()[..], &request.0].concat();
        let body = format!("@{}", self.node.write("cri/request", frame));
        let (headers, answer) = (self.node.path("cri/headers"), self.node.path("cri/answer"));
        let url = format!("http://localhost/runtime.v1.RuntimeService/{method}");
        self.node.must(&[
            "curl",
            "--silent",
            "--show-error",
            "--max-time",
            "25",
            "--http2-prior-knowledge",
            "--unix-socket",
            &self.socket,
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
            "--data-binary",
            &body,
            "--dump-header",
            &headers,
            "--output",
            &answer,
            &url,
        ]);
        let read =
            |path: &str| fs::read(path).unwrap_or_else(|e| panic!("{method}: read {path}: {e}"));
        let headers = String::from_utf8_lossy(&read(&headers)).into_owned();
        let ok = headers.lines().any(|line| line.trim() == "grpc-status: 0");
        assert!(ok, "{method} failed: {headers}");
        Message(read(&answer).split_off(5))
    }
}

/// The request of most calls: an id, and perhaps more.
fn identified(id: &str) -> Message {
    Message::default().with_text(1, id)
}

/// A Protocol Buffers message as bytes: fields by number, in any order, what is zero left out.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

/// What a field holds. Texts and messages look alike.
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    fn with_number(mut self, field: u64, value: u64) -> Self {
        self.put(field << 3);
        self.put(value);
        self
    }

    fn with_text(mut self, field: u64, value: &str) -> Self {
        self.put(field << 3 | 2);
        self.put(value.len() as u64);
        self.0.extend(value.as_bytes());
        self
    }

    fn with_message(mut self, field: u64, value: &Message) -> Self {
        self.put(field << 3 | 2);
        self.put(value.0.len() as u64);
        self.0.extend(&value.0);
        self
    }

    /// Seven bits at a time, the lowest first; the eighth says that more follow.
    fn put(&mut self, mut value: u64) {
        while value > 127 {
            self.0.push((value & 127) as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&self, field: u64) -> u64 {
        match self.fields(field).pop() {
            Some(Field::Number(number)) => number,
            _ => 0,
        }
    }

    fn text(&self, field: u64) -> String {
        String::from_utf8_lossy(&self.message(field).0).into_owned()
    }

    fn message(&self, field: u64) -> Message {
        self.messages(field).pop().unwrap_or_default()
    }

    fn messages(&self, field: u64) -> Vec<Message> {
        let messages = self
            .fields(field)
            .into_iter()
            .filter_map(|value| match value {
                Field::Bytes(bytes) => Some(Message(bytes)),
                Field::Number(_) => None,
            });
        messages.collect()
    }

    /// All values of a field.
    fn fields(&self, wanted: u64) -> Vec<Field> {
        let mut found = Vec::new();
        let mut rest = &self.0[..];
        while !rest.is_empty() {
            let key = take(&mut rest);
            let value = match key & 7 {
                0 => Field::Number(take(&mut rest)),
                2 => {
                    let length = usize::try_from(take(&mut rest)).expect("a small field");
                    let (bytes, after) = rest.split_at(length);
                    rest = after;
                    Field::Bytes(bytes.to_vec())
                }
                other => panic!("wire type {other}: no message of the CRI read here has it"),
            };
            if key >> 3 == wanted {
                found.push(value);
            }
        }
        found
    }
}

/// Takes what [`Message::put`] puts.
fn take(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest
            .split_first()
            .expect("the message ends inside a number");
        *rest = after;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            break;
        }
    }
    value
}
