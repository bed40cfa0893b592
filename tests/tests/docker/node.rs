//! The two nodes on which a command runs.

use sandbox::{Docker, Finished, Netns, Sandbox, Suite, image};

/// A node with Docker, or one with podwire.
pub trait Engine {
    /// Runs a command of `docker`, or the same one of `podwire`. The word `IMAGE` stands where Docker
    /// wants an image and podwire does not.
    fn run(&self, words: &[&str]) -> Finished;

    /// The node.
    fn host(&self) -> Netns;
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

    fn host(&self) -> Netns {
        self.node().sandbox().host()
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

    fn host(&self) -> Netns {
        self.sandbox.host()
    }
}
