//! The two nodes on which a command runs.

use sandbox::{Docker, Finished, Netns, Sandbox, Suite, image};

/// A node with Docker, or one with podwire.
pub trait Engine {
    /// Runs a command of `docker`, or the same one of `podwire`. The word `IMAGE` stands where Docker
    /// wants an image and podwire does not.
    fn run(&self, words: &[&str]) -> Finished;

    /// The sandbox around the node.
    fn sandbox(&self) -> &Sandbox;

    /// The node.
    fn host(&self) -> Netns {
        self.sandbox().host()
    }

    /// The network namespace of a container that runs.
    fn container(&self, name: &str) -> Netns;
}

fn with_image<'a>(words: &[&'a str], image: &'a str) -> Vec<&'a str> {
    let words = words.iter();
    words
        .map(|it| if *it == "IMAGE" { image } else { it })
        .collect()
}

impl Engine for Docker {
    fn run(&self, words: &[&str]) -> Finished {
        Docker::run(self, &with_image(words, image::IMAGE))
    }

    fn sandbox(&self) -> &Sandbox {
        self.node().sandbox()
    }

    fn container(&self, name: &str) -> Netns {
        let process = self.must(&["inspect", "-f", "{{.State.Pid}}", name]);
        let dir = self.node().process_dir(&process);
        self.sandbox().pod_at(name, &format!("{dir}/ns/net"))
    }
}

/// A node with podwire.
pub struct Podwire {
    sandbox: Sandbox,
    networks: String,
    settings: [String; 2],
    program: String,
}

impl Podwire {
    /// A node without networks.
    pub fn new() -> Self {
        let sandbox = Sandbox::new();
        let bin = Suite::Ours.dir().display();
        let networks = sandbox.dir().join("net.d").display().to_string();
        let settings = [format!("NETCONFPATH={networks}"), format!("CNI_PATH={bin}")];
        Self {
            program: format!("{bin}/podwire"),
            sandbox,
            networks,
            settings,
        }
    }

    /// The directory of the networks' files.
    pub fn networks(&self) -> &str {
        &self.networks
    }
}

impl Engine for Podwire {
    fn run(&self, words: &[&str]) -> Finished {
        let [networks, plugins] = &self.settings;
        let mut argv = vec!["env", networks, plugins, &self.program];
        argv.extend(with_image(words, "--"));
        self.host().run(&argv)
    }

    fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    fn container(&self, name: &str) -> Netns {
        let process = self.sandbox.read(format!("/run/podwire/run/{name}/pid"));
        let process = process.unwrap_or_else(|| panic!("{name} does not run"));
        self.sandbox
            .pod_at(name, &format!("/proc/{}/ns/net", process.trim()))
    }
}
