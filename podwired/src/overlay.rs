//! The overlay role: the nodes of flannel networks in a store become the kernel's peers, and this
//! node becomes one of theirs.
//!
//! | question | answer |
//! |---|---|
//! | what flannel's documents say | `crates/flannel` |
//! | how the store is spoken to | `crates/store` |
//! | how nodes of Kubernetes are such a store | [`nodes`] |
//! | which subnet this node gets, and keeps | [`lease`] |
//! | what is done when something changes | [`network`] |
//! | how the kernel gets there, and stays there | [`kernel`] |
//! | what the runtime reads | [`files`] |

mod conf;
pub(crate) mod feed;
mod files;
mod kernel;
mod lease;
mod network;
mod nodes;
mod peers;
mod status;

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use serde_json::{Value, json};
use store::{Etcd, File, Nodes, Store};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;

use crate::log;
use crate::roles::{Channels, Query, Readiness};

pub use conf::{Conf, EtcdKeys, Settings, Source, node_name};
use kernel::Kernel;
pub use lease::owner;
use network::Runner;
use nodes::Cluster;
use status::Status;

type Statuses = Vec<Rc<RefCell<Status>>>;

/// Serves until the channel of its queries ends. The networks stay as they are then.
///
/// # Errors
/// The kernel refuses its sockets, or files of the configuration cannot be read.
pub async fn serve(settings: Settings, channels: Channels) -> Result<()> {
    let kernel = Kernel::start()?;
    match &settings.source {
        Source::Etcd(access) => {
            let store = Rc::new(Etcd::new(access.clone())?);
            run(settings, store, kernel, channels).await;
        }
        Source::Kubernetes(access, membership) => {
            let cluster = Cluster::new(Nodes::new(access.clone())?, membership.clone());
            spawn_local(cluster.clone().announce(channels.readiness.subscribe()));
            run(settings, Rc::new(cluster), kernel, channels).await;
        }
        Source::File(path) => {
            let store = Rc::new(File::new(path.clone()));
            run(settings, store, kernel, channels).await;
        }
    }
    Ok(())
}

async fn run<S: Store + 'static>(
    settings: Settings,
    store: Rc<S>,
    kernel: Kernel,
    mut channels: Channels,
) {
    let statuses: Statuses = settings.networks.iter().map(begin).collect();
    let noted = Rc::new(Notify::new());
    let readiness = channels.readiness.clone();
    let mut tasks = vec![spawn_local(publish(
        statuses.clone(),
        Rc::clone(&noted),
        readiness,
    ))];
    for (index, network) in settings.networks.into_iter().enumerate() {
        let runner = Runner {
            index,
            network,
            store: Rc::clone(&store),
            kernel: kernel.clone(),
            status: Rc::clone(&statuses[index]),
            noted: Rc::clone(&noted),
        };
        tasks.push(spawn_local(runner.run()));
    }
    channels.started();
    channels.idle.send_replace(false);
    while let Some(ask) = channels.queries.recv().await {
        match ask {
            Query::Request(_, reply) | Query::Status(reply) => drop(reply.send(json(&statuses))),
            Query::Metrics(reply) => {
                let all: Vec<_> = statuses.iter().map(|it| it.borrow()).collect();
                let all: Vec<&Status> = all.iter().map(|it| &**it).collect();
                let _ = reply.send(status::metrics(&all));
            }
            Query::IsIdle(reply) => drop(reply.send(false)),
        }
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    log::info(format_args!(
        "overlay: ends, and leaves the networks as they are"
    ));
}

/// Publishes whether all networks are ready, after notes of any of them. A thousand networks that start
/// note much at once.
async fn publish(statuses: Statuses, noted: Rc<Notify>, readiness: watch::Sender<Readiness>) {
    loop {
        noted.notified().await;
        let faults: Vec<String> = statuses
            .iter()
            .filter_map(|it| it.borrow().fault())
            .collect();
        let ready = if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("; "))
        };
        readiness.send_if_modified(|before| {
            let differs = *before != ready;
            *before = ready;
            differs
        });
    }
}

fn begin(network: &conf::Membership) -> Rc<RefCell<Status>> {
    Rc::new(RefCell::new(Status {
        name: network.name.clone(),
        prefix: network.prefix.clone(),
        waits: Some("the store".into()),
        ..Status::default()
    }))
}

fn json(statuses: &Statuses) -> Value {
    let networks: Vec<Value> = statuses.iter().map(|it| it.borrow().json()).collect();
    json!({ "networks": networks })
}
