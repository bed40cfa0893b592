//! The table of plugins, `plugins.json` at the root of the project: what each needs of a node
//! and a configuration that works. Tests of what every plugin owes a runtime read it.

use std::env;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::conf;
use crate::netns::{Netns, Running};
use crate::sandbox::Sandbox;
use crate::suite::{Suite, testing_the_peer};

/// A row of the table.
pub struct Plugin {
    /// The CNI type, and so the name of its folder, package and binary.
    pub name: String,
    /// `plugins` or `ipam`: where its folder is.
    pub folder: String,
    /// Whether the Go suite has it, too, with the keys of `conf`.
    peer: bool,
    /// The oldest CNI version that it speaks.
    pub since: String,
    /// Whether DEL opens the pod's network namespace.
    pub opens_netns: bool,
    /// A line of script that fails where the kernel lacks the plugin's kind of link. The tests of the
    /// plugin run in the virtual machine (`tests/vm/run`).
    kernel: Option<String>,
    /// What the node needs before an ADD: `wire` ([`Sandbox::wire`]), `daemon`
    /// ([`Sandbox::dhcp_daemon`]), `agent` ([`Sandbox::agent_with_addresses`]) or a line of shell script.
    node: Vec<String>,
    /// What a pod needs before an ADD, as a line of shell script: a chained plugin changes an interface
    /// that another one has made.
    pod: String,
    /// The keys of a configuration, without version and network name.
    conf: Value,
}

impl Plugin {
    fn new(row: &Value) -> Self {
        let text = |key: &str| row[key].as_str().expect("a text of the table").to_owned();
        let flag = |key: &str| row[key].as_bool().unwrap_or(true);
        let lines = row["node"].as_array().into_iter().flatten();
        let line = |it: &Value| it.as_str().expect("a line of script").to_owned();
        Self {
            name: text("name"),
            folder: text("folder"),
            peer: flag("peer"),
            since: row["since"].as_str().unwrap_or("0.1.0").to_owned(),
            opens_netns: flag("opensNetns"),
            kernel: row["kernel"].as_str().map(str::to_owned),
            node: lines.map(line).collect(),
            pod: row["pod"].as_str().unwrap_or_default().to_owned(),
            conf: row["conf"].clone(),
        }
    }

    /// Whether the plugin has configuration keys of its own.
    pub fn has_keys(&self) -> bool {
        self.conf != json!({})
    }

    /// Whether this kernel has the plugin's kind of link.
    pub fn runs_here(&self) -> bool {
        let has_it = |script: &String| {
            let sandbox = Sandbox::new();
            sandbox.host().run(&["sh", "-ec", script]).code == 0
        };
        self.kernel.as_ref().is_none_or(has_it)
    }

    /// Whether the interface of its pods is another plugin's.
    pub fn is_given_interface(&self) -> bool {
        !self.pod.is_empty()
    }

    /// Whether an ADD needs more than the node: a DHCP server.
    pub fn needs_server(&self) -> bool {
        self.node.iter().any(|it| it == "daemon")
    }
}

/// The whole table.
pub fn table() -> &'static [Plugin] {
    static TABLE: OnceLock<Vec<Plugin>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let rows: Vec<Value> = serde_json::from_str(include_str!("../../../plugins.json"))
            .unwrap_or_else(|e| panic!("plugins.json: {e}"));
        rows.iter().map(Plugin::new).collect()
    })
}

/// The plugins that the suite under test has, and whose kind of link this kernel has. Those of
/// `SANDBOX_PLUGINS` alone, if it is set: `dummy,vlan`.
pub fn plugins() -> impl Iterator<Item = &'static Plugin> {
    static CHOSEN: OnceLock<Vec<&'static Plugin>> = OnceLock::new();
    let choose = || {
        let wanted = env::var("SANDBOX_PLUGINS").unwrap_or_default();
        let is_wanted = |it: &Plugin| wanted.is_empty() || wanted.split(',').any(|w| w == it.name);
        let suite = table().iter().filter(|it| it.peer || !testing_the_peer());
        suite.filter(|it| is_wanted(it) && it.runs_here()).collect()
    };
    CHOSEN.get_or_init(choose).iter().copied()
}

/// The versions before 1.1.0 that the plugin speaks.
pub fn versions_of(plugin: &str) -> Vec<&'static str> {
    let all = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"];
    let since = &row(plugin).since;
    all.into_iter().filter(|it| *it >= since.as_str()).collect()
}

/// A configuration with which an ADD of the plugin succeeds on a node that was made ready
/// ([`Sandbox::make_ready`]); dhcp needs a server as well.
pub fn conf_of(plugin: &str) -> Value {
    conf::with(&conf::plugin(plugin), row(plugin).conf.clone())
}

/// The row of the plugin.
pub fn row(plugin: &str) -> &'static Plugin {
    let found = table().iter().find(|it| it.name == plugin);
    found.unwrap_or_else(|| panic!("{plugin} is not in plugins.json"))
}

/// Runs `test` once per plugin, with a sandbox that was made ready and a pod of its own.
pub fn each_plugin(test: impl Fn(&Sandbox, &Netns, &'static str)) {
    for plugin in plugins() {
        let sandbox = Sandbox::new();
        let _daemon = sandbox.make_ready(&plugin.name);
        let pod = sandbox.pod("a");
        test(&sandbox, &pod, &plugin.name);
    }
}

impl Sandbox {
    /// Gives the node what the plugin's row asks for. The daemon, if there is one, ends when
    /// the returned guard is dropped.
    pub fn make_ready(&self, plugin: &str) -> Option<Running> {
        self.prepare_pods(&row(plugin).pod);
        let mut daemon = None;
        for step in &row(plugin).node {
            match step.as_str() {
                "wire" => self.wire(),
                "daemon" => daemon = Some(self.dhcp_daemon(Suite::Ours, &[])),
                "agent" => daemon = Some(self.agent_with_addresses()),
                script => drop(self.host().sh(script)),
            }
        }
        daemon
    }

    /// podwired with addresses for the plugin cluster, once it is ready.
    pub fn agent_with_addresses(&self) -> Running {
        let (file, store) = (
            self.dir().join("podwired.json"),
            self.dir().join("store.json"),
        );
        self.write(&file, json!({"ipam": {"file": store}}).to_string());
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let agent = self
            .host()
            .start(&[&program, "--config", &file.display().to_string()]);
        let conf = conf_of("cluster");
        let is_ready = |_: &Netns| self.cni("cluster").status(&conf).code() == 0;
        self.host().wait_until("the agent has addresses", is_ready);
        agent
    }

    /// The daemon of a suite's dhcp, with these flags, once it listens.
    pub fn dhcp_daemon(&self, suite: Suite, flags: &[&str]) -> Running {
        let program = suite.dir().join("dhcp").display().to_string();
        let daemon = self
            .host()
            .start(&[&[program.as_str(), "daemon"], flags].concat());
        let socket = format!("pid={},", daemon.id());
        let listens = |host: &Netns| host.sh("ss -Hlxp").contains(&socket);
        self.host().wait_until("the daemon listens", listens);
        daemon
    }
}
