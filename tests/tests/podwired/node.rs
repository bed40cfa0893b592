//! A node with an agent.

use std::path::PathBuf;

use sandbox::{Finished, Netns, Running, Sandbox, Suite};
use serde_json::Value;

/// Where the agent's socket is.
pub const SOCKET: &str = "/run/podwire/podwired.sock";

pub struct Node {
    pub sandbox: Sandbox,
}

impl Node {
    pub fn new() -> Self {
        Self {
            sandbox: Sandbox::new(),
        }
    }

    pub fn host(&self) -> Netns {
        self.sandbox.host()
    }

    /// The program.
    pub fn program() -> String {
        Suite::Ours.dir().join("podwired").display().to_string()
    }

    fn config(&self) -> PathBuf {
        self.sandbox.dir().join("podwired.json")
    }

    /// Runs the agent with a configuration until it ends.
    pub fn run(&self, conf: &str, options: &[&str]) -> Finished {
        self.sandbox.write(self.config(), conf);
        let (program, config) = (Self::program(), self.config().display().to_string());
        let argv = [&[&*program, "--config", &config], options].concat();
        self.host().run(&argv)
    }

    /// Starts the agent, and returns once its socket answers.
    #[track_caller]
    pub fn start(&self, conf: &Value) -> Running {
        self.sandbox.write(self.config(), conf.to_string());
        let config = self.config().display().to_string();
        let agent = self.host().start(&[&Self::program(), "--config", &config]);
        self.host().wait_until("the agent answers", |_| {
            assert!(is_running(&agent), "{}", agent.output());
            self.ask(r#"{"status":{}}"#).is_some()
        });
        agent
    }

    /// What the agent's socket answers; `None` if there is none.
    pub fn ask(&self, request: &str) -> Option<Value> {
        let script = format!("printf '%s\\n' '{request}' | nc -NU {SOCKET}");
        let done = self.host().run(&["sh", "-c", &script]);
        serde_json::from_str(&done.stdout).ok()
    }

    /// The page of a path at the endpoint: its status and its text.
    #[track_caller]
    pub fn page(&self, socket: &str, path: &str) -> (String, String) {
        let text = self.host().sh(&format!(
            "printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | nc -U {socket}"
        ));
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.lines().next().expect("a line").to_owned();
        (status, body.to_owned())
    }
}

/// Whether the process has not ended.
pub fn is_running(process: &Running) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id()));
    stat.is_ok_and(|it| !it.contains(") Z "))
}
