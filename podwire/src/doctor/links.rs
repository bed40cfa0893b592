//! The links of pods: both ends, their bridge, sizes and addresses.

use netlink::{Link, OperState};
use survey::{Attachment, Home, Interface, Place, Survey};

use super::finding::{About, Check, Finding, Severity, first_of, ip_in, quoted};
use super::{Examination, Node};
use crate::pods::{Attached, Plan};

pub const INTERFACE: Check = Check {
    id: "PW010",
    severity: Severity::Error,
    title: "a pod has lost its interface",
    why: "The pod runs without the network that it was given. Only a new ADD, with a new pod, gives it \
          back.",
};
pub const DOWN: Check = Check {
    id: "PW011",
    severity: Severity::Error,
    title: "an interface of a pod is down",
    why: "Nothing passes. On the node, NetworkManager or an administrator has set it down; in the pod, \
          the pod itself.",
};
pub const PORT: Check = Check {
    id: "PW012",
    severity: Severity::Error,
    title: "a pod's interface is not a port of its bridge",
    why: "The pod reaches neither its gateway nor other pods.",
};
pub const MTU: Check = Check {
    id: "PW013",
    severity: Severity::Error,
    title: "the two ends of a pod's link have different MTUs",
    why: "Packets that are larger than the smaller one vanish without a message: small requests work, \
          and transfers hang.",
};
pub const TUNNEL: Check = Check {
    id: "PW014",
    severity: Severity::Error,
    title: "packets of a VXLAN network do not fit into its underlay",
    why: "A packet with the header of VXLAN is larger than the interface that it leaves by can carry. \
          It is fragmented, or lost.",
};
pub const DRIFTING: Check = Check {
    id: "PW015",
    severity: Severity::Warning,
    title: "the MAC address of a bridge follows its ports",
    why: "A bridge without an address of its own takes the lowest of its ports. When that pod ends, the \
          others have a wrong address for their gateway, until they ask again.",
};
pub const DUPLICATE: Check = Check {
    id: "PW016",
    severity: Severity::Error,
    title: "an IPv6 address is in use by another host",
    why: "Duplicate address detection failed. The kernel does not use the address.",
};
pub const PORTS: Check = Check {
    id: "PW017",
    severity: Severity::Warning,
    title: "a bridge has nearly as many ports as it can have",
    why: "A Linux bridge has at most 1,023 ports. The next ADD fails after that.",
};
pub const ADDRESS: Check = Check {
    id: "PW018",
    severity: Severity::Error,
    title: "a pod lacks an address that it was given",
    why: "The pod, or a program in it, has removed the address. Nothing that was sent to it arrives.",
};

/// A bridge with so many ports is reported; it can have 1,023 (`BR_MAX_PORTS`).
const MANY_PORTS: usize = 970;

pub fn check(node: &Node<'_>, found: &mut Examination) {
    for attachment in &node.survey.attachments {
        let attached = node.attached(attachment);
        interfaces(node.survey, attachment, attached, found);
    }
    bridges(node, found);
    tunnels(node, found);
    addresses(node, found);
}

/// The bridge that an attachment's plugins name.
pub fn bridge_of(attached: &Attached) -> Option<String> {
    let mut plans = attached.plugins.iter().map(|it| &it.plan);
    plans.find_map(|plan| match plan {
        Plan::Bridge(plan) => Some(plan.bridge.to_string()),
        Plan::Vxlan(plan) => Some(plan.network.bridge.to_string()),
        _ => None,
    })
}

fn about(attachment: &Attachment) -> About {
    About::Pod {
        network: attachment.network.clone(),
        container_id: attachment.container_id.clone(),
    }
}

fn interfaces(
    survey: &Survey,
    attachment: &Attachment,
    attached: Option<&Attached>,
    found: &mut Examination,
) {
    let Home::At(home) = attachment.home else {
        return;
    };
    let has_outside = attached.is_some_and(|it| bridge_of(it).is_some() || is_ptp(it));
    let inside = attachment.inside.and_then(|it| survey.interface(it));
    let outside = attachment.outside.and_then(|it| survey.interface(it));
    if inside.is_none() || has_outside && outside.is_none() {
        // Without a result it was never complete: that is another finding.
        if attachment.result.is_some() && survey.namespaces[home].inode != 0 {
            lost(survey, attachment, home, inside, found);
        }
        return;
    }
    let Some(inside) = inside else { return };
    let ip = ip_in(&survey.namespaces[home]);
    for (interface, ip, place) in [
        (Some(inside), ip.as_str(), "in the pod"),
        (outside, "ip", "on the node"),
    ] {
        let Some(link) = interface.map(|it| &it.link) else {
            continue;
        };
        if !link.up {
            let what = format!("{} {place} is down", link.name);
            let finding = Finding::new(&DOWN, about(attachment), what);
            let name = quoted(&link.name);
            let command = format!("{ip} link show dev {name}");
            let finding = finding.shown_by(command, "no UP between < and >");
            found.add(finding.command(format!("{ip} link set {name} up")));
        }
    }
    if let Some(outside) = outside {
        port(survey, attachment, attached, &outside.link, found);
        sizes(attachment, &inside.link, &outside.link, &ip, found);
    }
    pod_addresses(attachment, inside, &ip, found);
}

fn is_ptp(attached: &Attached) -> bool {
    attached
        .plugins
        .iter()
        .any(|it| matches!(it.plan, Plan::Ptp(_)))
}

fn lost(
    survey: &Survey,
    attachment: &Attachment,
    home: usize,
    inside: Option<&Interface>,
    found: &mut Examination,
) {
    let what = match inside {
        None => format!("{} is not in the pod's namespace", attachment.ifname),
        Some(_) => format!("{} has no end on the node", attachment.ifname),
    };
    let finding = Finding::new(&INTERFACE, about(attachment), what);
    let ip = ip_in(&survey.namespaces[home]);
    let finding = finding.shown_by(
        format!("{ip} link show dev {}", quoted(&attachment.ifname)),
        format!("Device \"{}\" does not exist.", attachment.ifname),
    );
    found.add(finding.delete(
        &attachment.network,
        &attachment.container_id,
        &attachment.ifname,
    ));
}

fn port(
    survey: &Survey,
    attachment: &Attachment,
    attached: Option<&Attached>,
    link: &Link,
    found: &mut Examination,
) {
    let Some(name) = attached.and_then(bridge_of) else {
        return;
    };
    let Some(bridge) = survey.node().named(&name).map(|it| &it.link) else {
        // Reported as a bridge that is missing.
        return;
    };
    if link.master == Some(bridge.index) {
        return;
    }
    let what = format!("{} is not a port of {name}", link.name);
    let finding = Finding::new(&PORT, about(attachment), what);
    let finding = finding.shown_by(
        format!("ip -d link show dev {}", quoted(&link.name)),
        format!("no \"master {name}\""),
    );
    found.add(finding.command(format!("ip link set {} master {name}", quoted(&link.name))));
}

fn sizes(
    attachment: &Attachment,
    inside: &Link,
    outside: &Link,
    ip: &str,
    found: &mut Examination,
) {
    if inside.mtu == outside.mtu {
        return;
    }
    let what = format!(
        "MTU {} of {} in the pod, {} of {} on the node",
        inside.mtu, inside.name, outside.mtu, outside.name
    );
    let finding = Finding::new(&MTU, about(attachment), what);
    let finding = finding.shown_by(
        format!(
            "ip link show dev {}; {ip} link show dev {}",
            quoted(&outside.name),
            quoted(&inside.name)
        ),
        format!("mtu {}, mtu {}", outside.mtu, inside.mtu),
    );
    let smaller = inside.mtu.min(outside.mtu);
    found.add(finding.command(if inside.mtu > outside.mtu {
        format!("{ip} link set {} mtu {smaller}", quoted(&inside.name))
    } else {
        format!("ip link set {} mtu {smaller}", quoted(&outside.name))
    }));
}

/// The pod's interface has all addresses of the result.
fn pod_addresses(attachment: &Attachment, inside: &Interface, ip: &str, found: &mut Examination) {
    let Some(result) = &attachment.result else {
        return;
    };
    let at = result
        .interfaces
        .iter()
        .position(|it| it.name == attachment.ifname && !it.is_on_host());
    let Some(at) = at else { return };
    for given in result
        .ips
        .iter()
        .filter(|it| it.interface == i64::try_from(at).ok())
    {
        let given_ip = given.address.ip();
        if inside
            .addresses
            .iter()
            .any(|it| it.address.ip() == given_ip)
        {
            continue;
        }
        let name = &inside.link.name;
        let what = format!("{} is not on {name}", given.address.0);
        let finding = Finding::new(&ADDRESS, about(attachment), what);
        let name = quoted(name);
        let command = format!("{ip} address show dev {name}");
        let finding = finding.shown_by(command, format!("no {}", given.address.0));
        found.add(finding.command(format!("{ip} address add {} dev {name}", given.address.0)));
    }
}

fn bridges(node: &Node<'_>, found: &mut Examination) {
    let survey = node.survey.node();
    for interface in &survey.interfaces {
        let link = &interface.link;
        let ports = survey.ports(link.index).count();
        if !link.is_kind("bridge") || !node.is_of_a_network(&link.name) {
            continue;
        }
        let name = &link.name;
        if link.pinned() == Some(false) && ports > 0 {
            let mac = link.mac.map(|it| it.to_string()).unwrap_or_default();
            let what = format!("{name} has the address {mac} of a port");
            let finding = Finding::new(&DRIFTING, About::Node, what);
            let command = format!("cat /sys/class/net/{name}/addr_assign_type");
            let finding = finding.shown_by(command, "not 3 (set by a program)");
            found.add(finding.command(format!("ip link set {name} address {mac}")));
        }
        if ports >= MANY_PORTS {
            let what = format!("{name} has {ports} ports of 1023");
            let finding = Finding::new(&PORTS, About::Node, what);
            let finding = finding.shown_by(
                format!("bridge link show master {name} | wc -l"),
                ports.to_string(),
            );
            found.add(finding.advice("give new pods another network, or this node fewer pods"));
        }
    }
}

/// The bytes that VXLAN adds to a packet: with Ethernet's header, in IPv4 and in IPv6.
const OVERHEAD: [u32; 2] = [50, 70];

fn tunnels(node: &Node<'_>, found: &mut Examination) {
    let survey = node.survey.node();
    for interface in &survey.interfaces {
        let (Some(device), link) = (&interface.vxlan, &interface.link) else {
            continue;
        };
        if !node.is_of_a_network(&link.name) {
            continue;
        }
        let Some(local) = device.vxlan.local else {
            continue;
        };
        let has = |it: &&Interface| it.addresses.iter().any(|it| it.address.ip() == local);
        let uplink = device.vxlan.link.and_then(|index| survey.at(index));
        let Some(uplink) = uplink.or_else(|| survey.interfaces.iter().find(has)) else {
            continue;
        };
        let (name, under) = (&link.name, &uplink.link);
        let room = under
            .mtu
            .saturating_sub(OVERHEAD[usize::from(local.is_ipv6())]);
        if link.mtu > room {
            let what = format!("{name} has MTU {}, {} carries {room}", link.mtu, under.name);
            let finding = Finding::new(&TUNNEL, About::Node, what);
            let finding = finding.shown_by(
                format!("ip link show dev {name}; ip link show dev {}", under.name),
                format!("mtu {}, mtu {}", link.mtu, under.mtu),
            );
            found.add(finding.command(format!("ip link set {name} mtu {room}")));
        }
    }
}

fn addresses(node: &Node<'_>, found: &mut Examination) {
    let survey = node.survey;
    for (at, namespace) in survey.namespaces.iter().enumerate() {
        for interface in &namespace.interfaces {
            let failed = interface.addresses.iter().filter(|it| it.dad_failed);
            let failed: Vec<_> = failed.map(|it| it.address.to_string()).collect();
            if failed.is_empty() || at == 0 && !node.is_of_a_network(&interface.link.name) {
                continue;
            }
            let place = Place {
                namespace: at,
                index: interface.link.index,
            };
            let owner = survey
                .attachments
                .iter()
                .find(|it| it.inside == Some(place));
            if at != 0 && owner.is_none() {
                continue;
            }
            let ip = ip_in(namespace);
            let name = &interface.link.name;
            let what = format!("{} on {name}: another host has it", first_of(&failed));
            let finding = Finding::new(&DUPLICATE, owner.map_or(About::Node, about), what);
            let command = format!("{ip} -6 address show dev {} dadfailed", quoted(name));
            found.add(finding.shown_by(command, first_of(&failed)).advice(
                "find the other host (ip -6 neigh, or the router's table), and give one of them another \
                 address",
            ));
        }
    }
}

/// Whether a link carries packets, as far as it says.
pub fn carries(link: &Link) -> bool {
    link.up && matches!(link.operstate, OperState::Up | OperState::Unknown)
}
