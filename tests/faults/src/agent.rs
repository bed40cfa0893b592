//! An agent with the role `ipam`, for the plugin under test. Its list of addresses shows whether a fault has
//! left one assigned.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sandbox::{Running, Sandbox, Suite, conf};
use serde_json::{Value, json};

/// A DEL that did not reach the agent leaves a release, which the agent does within a second.
const MOMENT: Duration = Duration::from_secs(4);

/// The agent of a node.
pub struct Agent {
    dir: PathBuf,
    _running: Running,
    before: Value,
}

impl Agent {
    /// Starts it, with a file as the store.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(sandbox: &Sandbox) -> Result<Self> {
        // Not where the leak check looks: the journal has history.
        let dir = sandbox.dir().join("agent");
        std::fs::create_dir_all(&dir)?;
        let document = json!({"socket": dir.join("sock"), "ipam": {
            "file": dir.join("store.json"), "node": "node", "dataDir": dir.join("ipam"),
        }});
        let file = dir.join("podwired.json").display().to_string();
        std::fs::write(&file, document.to_string())?;
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let running = sandbox.host().start(&[&program, "--config", &file]);
        let agent = Self {
            dir,
            _running: running,
            before: Value::Null,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while agent.ask("ready").is_none_or(|it| it.get("done").is_none()) {
            if Instant::now() > deadline {
                bail!("the agent is not ready: {}", agent._running.output());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// The configuration with the keys that name this agent.
    pub fn named_in(&self, conf: &Value) -> Value {
        let keys = json!({"agent": self.dir.join("sock"), "dataDir": self.dir.join("ipam")});
        conf::with(conf, json!({"ipam": keys}))
    }

    fn ask(&self, what: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.dir.join("sock")).ok()?;
        stream.set_read_timeout(Some(MOMENT)).ok()?;
        let line = format!("{}\n", json!({"ipam": {what: {}}}));
        stream.write_all(line.as_bytes()).ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
    }

    /// How many addresses each network has.
    fn addresses(&self) -> Value {
        let state = self.ask("show").unwrap_or_default();
        state["state"]["use"].clone()
    }

    /// Records the addresses in use.
    pub fn note(&mut self) {
        self.before = self.addresses();
    }

    /// Waits until the same addresses are in use as recorded.
    ///
    /// # Errors
    /// When it is not.
    pub fn is_as_before(&self) -> Result<()> {
        let deadline = Instant::now() + MOMENT;
        loop {
            let now = self.addresses();
            let released = self.dir.join("ipam/released");
            if now == self.before && !released.exists() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let before = &self.before;
                return Err(anyhow::anyhow!("{now}, not {before}"))
                    .context("addresses in the agent");
            }
            sleep(Duration::from_millis(50));
        }
    }
}
