//! The role that answers for the names of pods.
//!
//! [`records`] is what plugins have written, [`index`] the same in memory. [`answer`] decides, without
//! a socket, what a client gets. [`service`] has the sockets of each network's gateway addresses,
//! [`forward`] queries other servers, and [`sharing`] has the names of other nodes. Everything is on one thread, so a question sees a record as a whole or
//! not at all, and an acknowledged change is seen by every later question.

pub mod answer;
mod branch;
mod counters;
mod datagrams;
mod firewall;
mod forward;
mod gate;
pub mod index;
mod readable;
mod records;
mod service;
pub mod sharing;
mod sockets;
mod upstream;

use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use names::{Found, Name, Reply, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::Page;
use crate::roles::{Channels, Query};
use records::Records;
use service::Service;
use sharing::Shared;

/// How often namespaces are looked at, and addresses tried that could not be opened.
const SWEEP: Duration = Duration::from_secs(1);

/// The keys of the role: none yet. What is a network's is in its configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {}

/// What the role does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The networks that span nodes.
    pub shared: Option<Shared>,
}

/// Serves until the channel of its queries ends.
///
/// # Errors
/// The records, or files of the configuration, cannot be read.
pub async fn serve(settings: Settings, mut channels: Channels) -> Result<()> {
    let service = Service::new();
    let mut records = Records::open(Rc::clone(&service))?;
    let _sharing = sharing::start(settings.shared, &service)?;
    report(&service, &channels);
    channels.started();
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ask = channels.queries.recv() => match ask {
                Some(ask) => handle(&service, &mut records, ask),
                None => {
                    service.settle().await;
                    return Ok(());
                }
            },
            () = records.changed() => {}
            _ = sweep.tick() => {
                records.sweep().await;
                service.listen(true);
            }
        }
        report(&service, &channels);
    }
}

/// Tells the agent how it stands.
fn report(service: &Service, channels: &Channels) {
    let failed = service.failed();
    let readiness = if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("; "))
    };
    channels.readiness.send_if_modified(|it| {
        let is_new = *it != readiness;
        if is_new {
            *it = readiness;
        }
        is_new
    });
    let idle = service.index.borrow().is_empty();
    channels
        .idle
        .send_if_modified(|it| std::mem::replace(it, idle) != idle);
}

fn handle(service: &Rc<Service>, records: &mut Records, ask: Query) {
    match ask {
        Query::Request(value, reply) => {
            let answer = match serde_json::from_value(value) {
                Ok(request) => carry_out(service, records, request),
                Err(error) => Reply::Error(format!("request names: {error}")),
            };
            let answer = serde_json::to_value(answer);
            let _ = reply.send(answer.unwrap_or_else(|it| json!({"error": it.to_string()})));
        }
        Query::Status(reply) => drop(reply.send(status(service, records))),
        Query::Metrics(reply) => drop(reply.send(metrics(service))),
        Query::IsIdle(reply) => drop(reply.send(records.is_idle())),
    }
}

fn carry_out(service: &Rc<Service>, records: &Records, request: Request) -> Reply {
    match request {
        Request::Read(entry) => {
            let fault = records.read(&entry);
            service.listen(false);
            match fault {
                Some(why) => Reply::Error(why),
                None => Reply::Servers(service.servers(entry.network())),
            }
        }
        Request::Resolve(name) => Reply::Found(resolve(service, &name)),
        Request::Elsewhere => Reply::Elsewhere(service.index.borrow().elsewhere()),
    }
}

/// The addresses of a name in all networks.
fn resolve(service: &Service, name: &Name) -> Vec<Found> {
    let index = service.index.borrow();
    let mut found = Vec::new();
    for net in index.ids() {
        let Some(hit) = index.find(&[net], name.as_str()) else {
            continue;
        };
        let network = &hit.net.about.name;
        found.extend(index.addresses(hit).map(|address| Found {
            network: network.clone(),
            address,
        }));
    }
    found
}

fn status(service: &Service, records: &Records) -> Value {
    let index = service.index.borrow();
    let mut networks = Map::new();
    for net in index.networks() {
        let servers = service.servers(net.directory());
        let containers = net.len();
        let value = json!({"servers": servers, "containers": containers});
        networks.insert(net.about.name.clone(), value);
    }
    json!({
        "records": index.len(),
        "names": index.names(),
        "networks": networks,
        "failed": service.failed(),
        "upstreams": service.upstreams(),
        "directory": records.path(),
    })
}

fn metrics(service: &Service) -> Page {
    let mut page = Page::default();
    service.counters.borrow().write(&mut page);
    let index = service.index.borrow();
    let name = "podwired_resolver_names";
    page.begin(name, "gauge", "Names that are answered, by network.");
    for net in index.networks() {
        page.sample(name, &[("network", &net.about.name)], net.names());
    }
    let help = "Records of containers.";
    page.single("podwired_resolver_records", "gauge", help, index.len());
    let help = "Questions that other servers are being asked.";
    let number = service.forwards.number();
    page.single(
        "podwired_resolver_forwards_in_flight",
        "gauge",
        help,
        number,
    );
    let help = "Addresses where another server has the port.";
    let failed = service.failed().len();
    page.single(
        "podwired_resolver_unserved_addresses",
        "gauge",
        help,
        failed,
    );
    page
}
