//! VXLAN networks: the node's own address, its peers.

use crate::commands::PeerNode;

use super::finding::{About, Check, Finding, Severity, first_of};
use super::{Examination, Node};
use crate::pods::Plan;

pub const ADDRESS: Check = Check {
    id: "PW060",
    severity: Severity::Error,
    title: "the address of a VXLAN device is not the node's any more",
    why: "The device sends with an address that the node has lost, so no answer arrives. The next ADD \
          repairs it.",
};
pub const PEERS: Check = Check {
    id: "PW061",
    severity: Severity::Error,
    title: "the kernel does not know peers of a VXLAN network",
    why: "Pods do not reach those hosts.",
};

pub fn check(node: &Node<'_>, found: &mut Examination) {
    let survey = node.survey.node();
    let mut seen = Vec::new();
    for plugin in node.pods.attached.iter().rev().flat_map(|it| &it.plugins) {
        let Plan::Vxlan(plan) = &plugin.plan else {
            continue;
        };
        let network = &plan.network;
        if seen.contains(&network.name) {
            continue;
        }
        seen.push(network.name.clone());
        let device = network.device();
        let vxlan = survey.named(&device).and_then(|it| it.vxlan.as_ref());
        let about = About::Network(network.name.clone());
        let local = vxlan.and_then(|it| it.vxlan.local);
        let has = |ip| {
            survey
                .interfaces
                .iter()
                .any(|it| it.addresses.iter().any(|it| it.address.ip() == ip))
        };
        if let Some(local) = local.filter(|ip| !has(*ip)) {
            let what = format!("{device} sends from {local}, which no interface has");
            let finding = Finding::new(&ADDRESS, about, what);
            let finding = finding.shown_by(
                format!("ip -d link show dev {device}; ip address show to {local}"),
                format!("local {local}, and no such address"),
            );
            found.add(finding.advice(
                "give the node its address again, or attach a pod, which moves the device",
            ));
            // Without the address the peers cannot be compared.
            continue;
        }
        peers(network, &device, about, found);
    }
}

fn peers(network: &overlay::Network, device: &str, about: About, found: &mut Examination) {
    let unknown = || -> anyhow::Result<Option<(usize, Vec<String>)>> {
        let node = PeerNode::find(network.clone())?;
        let unknown = node.unknown_peers()?;
        let texts = |it: Vec<&overlay::Peer>| it.iter().map(ToString::to_string).collect();
        Ok(unknown.map(|(configured, missing)| (configured, texts(missing))))
    };
    let unknown = unknown();
    match unknown {
        Err(error) => found.unread(&format!("peers of {}", network.name), error),
        Ok(Some((configured, missing))) if !missing.is_empty() => {
            let what = format!(
                "{} of {configured} are missing: {}",
                missing.len(),
                first_of(&missing)
            );
            let finding = Finding::new(&PEERS, about, what);
            let finding = finding.shown_by(
                format!(
                    "bridge fdb show dev {device}; ip neigh; podwire status --verbose {}",
                    network.name
                ),
                format!("no {}", missing[0]),
            );
            found.add(finding.advice(format!(
                "podwire peers set {} with all peers, or attach a pod after a change of the \
                 configuration",
                network.name
            )));
        }
        Ok(_) => {}
    }
}
