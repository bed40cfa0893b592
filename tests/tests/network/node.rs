//! A node with a directory of configurations.

use sandbox::{Finished, Netns, Sandbox, Suite};
use serde_json::Value;

pub struct Node {
    pub sandbox: Sandbox,
}

impl Node {
    pub fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.host().sh(&format!(
            "mkdir -p {}",
            sandbox.dir().join("net.d").display()
        ));
        Self { sandbox }
    }

    pub fn host(&self) -> Netns {
        self.sandbox.host()
    }

    /// A shell on the node in which `podwire` is a command.
    pub fn sh(&self, script: &str) -> Finished {
        let (dir, bin) = (self.sandbox.dir().display(), Suite::Ours.dir().display());
        let set = format!(
            "export NETCONFPATH={dir}/net.d CNI_PATH={bin} PATH={bin}:/usr/sbin:/usr/bin:/sbin:/bin\ncd {dir}\n{script}"
        );
        self.host().run(&["env", "-i", "sh", "-c", &set])
    }

    pub fn podwire(&self, args: &[&str]) -> Finished {
        let quoted: Vec<_> = args
            .iter()
            .map(|it| format!("'{}'", it.replace('\'', "'\\''")))
            .collect();
        self.sh(&format!("exec podwire {}", quoted.join(" ")))
    }

    pub fn network(&self, args: &[&str]) -> Finished {
        self.podwire(&[&["network"], args].concat())
    }

    /// Creates a network and returns its id.
    #[track_caller]
    pub fn create(&self, args: &[&str]) -> String {
        good(&self.network(&[&["create"], args].concat()))
            .trim()
            .to_owned()
    }

    #[track_caller]
    pub fn inspect(&self, network: &str) -> Value {
        let text = good(&self.network(&["inspect", network]));
        let documents: Value = serde_json::from_str(&text).expect("JSON");
        documents[0].clone()
    }

    /// What a template makes of a network.
    #[track_caller]
    pub fn template(&self, template: &str, network: &str) -> String {
        good(&self.network(&["inspect", "-f", template, network]))
            .trim_end()
            .to_owned()
    }

    /// The names of the configurations.
    pub fn files(&self) -> Vec<String> {
        self.sandbox.list(self.sandbox.dir().join("net.d"))
    }

    pub fn write(&self, file: &str, content: &Value) {
        self.sandbox
            .write(self.sandbox.dir().join(file), content.to_string());
    }

    pub fn json(&self, file: &str) -> Value {
        let text = self
            .sandbox
            .read(self.sandbox.dir().join(file))
            .expect("a file");
        serde_json::from_str(&text).expect("JSON")
    }
}

/// The output of a command that succeeds and has nothing to report.
#[track_caller]
pub fn good(done: &Finished) -> String {
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    done.stdout.clone()
}

/// Asserts that a command fails with a text.
#[track_caller]
pub fn bad(done: &Finished, text: &str) {
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains(text), "no word of {text:?}: {done:?}");
}
