//! The nodes of a Kubernetes cluster as a store in flannel's layout for etcd, so that the rest of the
//! role knows one layout: a node of the network is the key of its subnet, its annotations are the
//! value, and the configuration is a file, as flanneld has it.
//!
//! This node's subnet is the one that Kubernetes has assigned to it. There are no leases: a node is
//! in the network as long as its object is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use flannel::{Annotations, BackendType, Config, Lease, Subnet};
use ipnetwork::IpNetwork;
use networks::named::Moment;
use serde_json::{Value, json};
use store::{
    Changes, Entry, Error, Event, Expected, LeaseId, Listing, Merge, Node, NodeEvent, NodeWatch,
    Nodes, Revision, Store, Watch,
};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, interval, sleep};

use super::lease;
use crate::log;
use crate::roles::Readiness;

/// How often the configuration is read: a ConfigMap replaces its file some time after its change.
const PERIOD: Duration = Duration::from_secs(10);
/// Between two attempts to clear the condition.
const RETRY: Duration = Duration::from_secs(1);

/// How the cluster is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The name of this node's object.
    pub node: String,
    /// The file with the configuration of the network.
    pub config_file: PathBuf,
    /// The names of the annotations.
    pub annotations: Annotations,
    /// What keys begin with.
    pub prefix: String,
}

/// The cluster.
#[derive(Clone)]
pub struct Cluster(Rc<Inner>);

struct Inner {
    nodes: Nodes,
    own: Membership,
    /// The key and the value of each node of the network, by its name.
    seen: RefCell<BTreeMap<String, (String, Vec<u8>)>>,
    /// What this node has published; `None` during a list.
    published: RefCell<Option<Lease>>,
    /// This node's annotations.
    annotations: RefCell<BTreeMap<String, String>>,
    /// The configuration, as it was last read, and whether it has IPv6.
    config: RefCell<Vec<u8>>,
    has_v6: Cell<bool>,
    /// Whether the node's condition keeps pods away.
    is_unavailable: watch::Sender<bool>,
}

impl Cluster {
    pub fn new(nodes: Nodes, own: Membership) -> Self {
        Self(Rc::new(Inner {
            nodes,
            own,
            seen: RefCell::default(),
            published: RefCell::default(),
            annotations: RefCell::default(),
            config: RefCell::default(),
            has_v6: Cell::default(),
            is_unavailable: watch::channel(false).0,
        }))
    }

    /// Clears the condition with which a cloud provider keeps pods away from a node without a network,
    /// whenever it is there and the network is ready. Runs for ever.
    pub async fn announce(self, mut readiness: watch::Receiver<Readiness>) {
        let mut unavailable = self.0.is_unavailable.subscribe();
        loop {
            let ready = readiness.wait_for(Result::is_ok).await.is_ok();
            let needed = unavailable.wait_for(|it| *it).await.is_ok();
            if !(ready && needed) {
                return;
            }
            match self
                .0
                .nodes
                .patch(&self.0.own.node, &available(), Merge::Strategic)
                .await
            {
                Ok(_) => {
                    self.0.is_unavailable.send_replace(false);
                    log::info(format_args!(
                        "overlay: the network of node {} is available",
                        self.0.own.node
                    ));
                }
                Err(error) => {
                    log::warn(format_args!("overlay: clear NetworkUnavailable: {error}"));
                    sleep(RETRY).await;
                }
            }
        }
    }

    fn config(&self) -> Result<Config, String> {
        Config::parse_assigned(&self.0.config.borrow())
    }

    /// Reads the configuration's file. Returns it as an entry if it has changed.
    fn read_config(&self) -> Result<Option<Entry>, Error> {
        let file = &self.0.own.config_file;
        // A mounted ConfigMap consists of symbolic links.
        let text = cni::file::read_chosen(file, cni::file::LONGEST)
            .map_err(|error| Error::Refused(format!("read {}: {error}", file.display())))?;
        if *self.0.config.borrow() == text {
            return Ok(None);
        }
        *self.0.config.borrow_mut() = text;
        self.0
            .has_v6
            .set(self.config().is_ok_and(|it| it.v6.is_some()));
        Ok(Some(self.config_entry()))
    }

    fn config_entry(&self) -> Entry {
        entry(
            flannel::config_key(&self.0.own.prefix),
            self.0.config.borrow().clone(),
            0,
        )
    }

    /// The key and the value of a node of the network.
    fn lease(&self, node: &Node) -> Option<(String, Vec<u8>)> {
        let names = &self.0.own.annotations;
        let is_own = node.name == self.0.own.node;
        let text = match &*self.0.published.borrow() {
            Some(lease) if is_own && names.says(&node.annotations, lease) => lease.to_json(),
            Some(_) => names.lease(&node.annotations)?,
            None if is_own => self.own_lease(node),
            None => names.lease(&node.annotations)?,
        };
        let subnet = self.subnet(node)?;
        // A cluster's nodes have subnets.
        let key = lease::key(&self.0.own.prefix, BackendType::Vxlan, &subnet);
        Some((key, text.into_bytes()))
    }

    /// The key is this node's, whatever it says.
    fn own_lease(&self, node: &Node) -> String {
        let names = &self.0.own.annotations;
        let text = names.lease(&node.annotations);
        let text = text.unwrap_or_else(|| "{}".into());
        let mut value: Value = serde_json::from_str(&text).unwrap_or_default();
        value["PodwireOwner"] = lease::owner().into();
        let lease = Lease::parse(text.as_bytes());
        if !lease.is_ok_and(|it| names.says(&node.annotations, &it)) {
            // An administrator has replaced the address since: it is to be written again.
            value["PublicIP"] = Value::Null;
        }
        value.to_string()
    }

    /// The subnets that Kubernetes has assigned, of the families that the network has.
    fn subnet(&self, node: &Node) -> Option<Subnet> {
        let (mut v4, mut v6) = (None, None);
        for cidr in &node.pod_cidrs {
            match cidr.parse().ok()? {
                IpNetwork::V4(it) => v4 = Some(it),
                IpNetwork::V6(it) => v6 = Some(it).filter(|_| self.0.has_v6.get()),
            }
        }
        Some(Subnet { v4: v4?, v6 })
    }

    /// Why this node can have no subnet.
    fn check_own(&self, node: Option<&Node>) -> Result<(), Error> {
        let name = &self.0.own.node;
        let Some(node) = node else {
            let why = format!(
                "there is no node {name:?}: nodeName, or NODE_NAME, is the name of the node's object"
            );
            return Err(Error::Refused(why));
        };
        let cidrs = node.pod_cidrs.join(", ");
        let why = match (self.subnet(node), self.config()) {
            (None, _) if cidrs.is_empty() => format!(
                "node {name} has no podCIDR yet: kube-controller-manager assigns it, with --allocate-node-cidrs and --cluster-cidr"
            ),
            (None, _) => format!("the podCIDRs of node {name}, {cidrs}, have none of IPv4"),
            (Some(subnet), Ok(config)) if !config.allows(&subnet) => {
                let networks: Vec<_> = config.networks().map(|it| it.to_string()).collect();
                let networks = networks.join(" and ");
                format!("the podCIDRs of node {name}, {cidrs}, are not one in each of {networks}")
            }
            _ => return Ok(()),
        };
        Err(Error::Refused(why))
    }

    /// Notes a node. Returns what has changed for the network.
    fn note(&self, event: NodeEvent) -> Vec<Event> {
        let (name, now, revision) = match event {
            NodeEvent::Is(node) => {
                if node.name == self.0.own.node {
                    self.note_own(&node);
                }
                let lease = self.lease(&node);
                (node.name, lease, node.revision)
            }
            NodeEvent::Gone { name } => (name, None, 0),
        };
        let mut seen = self.0.seen.borrow_mut();
        let before = match &now {
            Some(now) => seen.insert(name, now.clone()),
            None => seen.remove(&name),
        };
        if before == now {
            return Vec::new();
        }
        let moved = before.filter(|old| now.as_ref().is_none_or(|now| now.0 != old.0));
        let gone = moved.map(|(key, _)| Event::Delete { key });
        let is = now.map(|(key, value)| Event::Put(entry(key, value, revision)));
        gone.into_iter().chain(is).collect()
    }

    fn note_own(&self, node: &Node) {
        self.0
            .annotations
            .borrow_mut()
            .clone_from(&node.annotations);
        let needed = node.network_unavailable != Some(false);
        self.0
            .is_unavailable
            .send_if_modified(|it| std::mem::replace(it, needed) != needed);
    }
}

impl Store for Cluster {
    type Watch = ClusterWatch;

    async fn list(&self, _prefix: &str) -> Result<Listing, Error> {
        self.read_config()?;
        self.0.seen.borrow_mut().clear();
        *self.0.published.borrow_mut() = None;
        let mut own = None;
        let mut entries = vec![self.config_entry()];
        let revision =
            self.0.nodes.list(|node| {
                if node.name == self.0.own.node {
                    own = Some(node.clone());
                }
                entries.extend(self.note(NodeEvent::Is(node)).into_iter().filter_map(
                    |it| match it {
                        Event::Put(entry) => Some(entry),
                        Event::Delete { .. } => None,
                    },
                ));
            });
        let revision = revision.await?;
        self.check_own(own.as_ref())?;
        let value = self.0.seen.borrow().get(&self.0.own.node).cloned();
        let value = value.and_then(|(_, value)| Lease::parse(&value).ok());
        *self.0.published.borrow_mut() = value;
        Ok(Listing { entries, revision })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let found = self.0.seen.borrow();
        let found = found.values().find(|it| it.0 == key);
        Ok(found.map(|(key, value)| entry(key.clone(), value.clone(), 0)))
    }

    async fn watch(&self, _prefix: &str, from: Revision) -> Result<ClusterWatch, Error> {
        Ok(ClusterWatch {
            cluster: self.clone(),
            watch: self.0.nodes.watch(from - 1).await?,
            opened: Instant::now(),
            tick: interval(PERIOD),
        })
    }

    /// Only this node's key is ever written. What other programs change of the node meanwhile, as
    /// kubelet does all the time, does not matter.
    async fn put(
        &self,
        key: &str,
        value: &[u8],
        _expected: Expected,
        _lease: Option<LeaseId>,
    ) -> Result<Option<Revision>, Error> {
        let Inner { nodes, own, .. } = &*self.0;
        if self
            .0
            .seen
            .borrow()
            .get(&own.node)
            .is_none_or(|it| it.0 != key)
        {
            let why = format!("{key} is not of the podCIDRs of node {}", own.node);
            return Err(Error::Refused(why));
        }
        let lease = Lease::parse(value).map_err(Error::Refused)?;
        let annotations = own
            .annotations
            .written(&lease, &self.0.annotations.borrow());
        let patch = json!({"metadata": {"annotations": annotations}});
        *self.0.published.borrow_mut() = Some(lease);
        nodes.patch(&own.node, &patch, Merge::Plain).await.map(Some)
    }

    async fn delete(&self, key: &str, _expected: Revision) -> Result<bool, Error> {
        Err(Error::Refused(format!("{key} is a node of the cluster")))
    }

    async fn grant(&self, _ttl: Duration) -> Result<LeaseId, Error> {
        Err(Error::Refused("a cluster has no leases".into()))
    }

    async fn renew(&self, _lease: LeaseId) -> Result<Option<Duration>, Error> {
        Err(Error::Refused("a cluster has no leases".into()))
    }

    fn reconnect(&self) {
        self.0.nodes.reconnect();
    }

    async fn revoke(&self, _lease: LeaseId) -> Result<(), Error> {
        Ok(())
    }
}

/// A watch of a cluster and of the configuration.
pub struct ClusterWatch {
    cluster: Cluster,
    watch: NodeWatch,
    opened: Instant,
    tick: Interval,
}

impl Watch for ClusterWatch {
    async fn next(&mut self) -> Result<Changes, Error> {
        let read = tokio::select! {
            read = self.watch.next() => read?,
            _ = self.tick.tick() => {
                // A file that is away is away for a moment.
                let changed = self.cluster.read_config().ok().flatten();
                return Ok(self.changes(changed.map(Event::Put).into_iter().collect()));
            }
        };
        let Some(events) = read else {
            // It ends after minutes. One that ends at once is out of order.
            if self.opened.elapsed() < RETRY {
                return Err(Error::Unavailable("the watch has ended".into()));
            }
            let seen = self.watch.seen();
            self.watch = self.cluster.0.nodes.watch(seen).await?;
            self.opened = Instant::now();
            return Ok(self.changes(Vec::new()));
        };
        let events = events
            .into_iter()
            .flat_map(|it| self.cluster.note(it))
            .collect();
        Ok(self.changes(events))
    }
}

impl ClusterWatch {
    fn changes(&self, events: Vec<Event>) -> Changes {
        let revision = self.watch.seen();
        Changes { events, revision }
    }
}

fn entry(key: String, value: Vec<u8>, revision: Revision) -> Entry {
    Entry {
        key,
        value,
        revision,
        lease: None,
    }
}

/// The condition as flanneld writes it.
fn available() -> Value {
    let now = Moment::now().to_string();
    json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }]}})
}
