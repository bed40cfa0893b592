//! What the cache, the kernel and host-local have of attachments, compared.

use std::collections::BTreeMap;
use std::net::IpAddr;

use survey::{Attachment, Home, Survey};

use super::finding::{About, Check, Finding, Severity, first_of, quoted};
use super::{Examination, Node};
use crate::unknown_owners::UnknownOwners;
use crate::{firewalls, gateways};

pub const RULES: Check = Check {
    id: "PW020",
    severity: Severity::Error,
    title: "rules of running pods are missing",
    why: "Another program has flushed the packet filter: iptables -F, nft flush ruleset, a reload of \
          firewalld. Published ports lead nowhere, or pods are not masqueraded or separated.",
};
pub const BRIDGE: Check = Check {
    id: "PW021",
    severity: Severity::Error,
    title: "a bridge is down, or lacks the gateway's address",
    why: "The pods of the network do not reach their gateway. NetworkManager does that, and ip address \
          flush.",
};
pub const GONE: Check = Check {
    id: "PW022",
    severity: Severity::Warning,
    title: "an attachment's namespace is gone, but it was never detached",
    why: "Its runtime was killed, or the node has crashed, before DEL. Its address, and its ports, stay \
          reserved.",
};
pub const UNCACHED: Check = Check {
    id: "PW023",
    severity: Severity::Warning,
    title: "the kernel has an attachment that the cache does not have",
    why: "Its runtime keeps its cache elsewhere (--cache-dir), or the file was lost. Then DEL has no \
          prevResult, and resync does not restore its rules.",
};
pub const LEAKED: Check = Check {
    id: "PW024",
    severity: Severity::Warning,
    title: "addresses are reserved for containers that are gone",
    why: "The range gets smaller with each of them, until no pod can start.",
};
pub const STRAY_PORTS: Check = Check {
    id: "PW025",
    severity: Severity::Error,
    title: "ports of a pod that is gone are still published",
    why: "Connections to them lead nowhere, or to the next pod with that address.",
};
pub const UNREADABLE: Check = Check {
    id: "PW026",
    severity: Severity::Warning,
    title: "a file of the cache cannot be read",
    why: "A crash has truncated it, or another program has written it. Its attachment counts as in use \
          forever, and DEL has no prevResult.",
};
pub const VACANT: Check = Check {
    id: "PW027",
    severity: Severity::Warning,
    title: "a name of a namespace leads to none",
    why: "The file is left over from a crash or a reboot. A runtime cannot use the name again.",
};
pub const IMPOSSIBLE: Check = Check {
    id: "PW028",
    severity: Severity::Error,
    title: "what a pod needs cannot be restored",
    why: "resync leaves it, because something else is in its place, or because its pods have to be \
          created again.",
};

pub fn check(node: &Node<'_>, found: &mut Examination) {
    missing_rules(node, found);
    for attachment in &node.survey.attachments {
        gone(attachment, found);
        uncached(node, attachment, found);
    }
    leaked(node.survey, found);
    stray_ports(node, found);
    for file in &node.survey.unidentified {
        let Some(fault) = &file.fault else { continue };
        let path = quoted(&file.path.display().to_string());
        let finding = Finding::new(&UNREADABLE, About::Node, format!("{path}: {fault}"));
        let finding = finding.shown_by(format!("cat {path}"), fault);
        found.add(finding.command(format!("rm -r {path}")));
    }
    for path in &node.survey.vacant {
        let path = quoted(&path.display().to_string());
        let finding = Finding::new(
            &VACANT,
            About::Node,
            format!("{path} is no network namespace"),
        );
        let finding = finding.shown_by(format!("stat -f -c %T {path}"), "not nsfs");
        found.add(finding.command(format!("rm -r {path}")));
    }
}

/// What `podwire resync` would restore: so both agree.
fn missing_rules(node: &Node<'_>, found: &mut Examination) {
    match gateways::resync(&node.pods.attached, true) {
        Ok(restored) => {
            let mut report = packet_filter::node::Report::default();
            restored.add_to(&mut report, true);
            restorable(&BRIDGE, &report.done, "ip address; ip link", found);
            impossible(&report.left, found);
        }
        Err(error) => found.unread("bridges", error),
    }
    let rules = packet_filter::node::resync(&node.pods.wanted, true);
    let rules = rules.and_then(|mut report| {
        report.add(firewalls::resync(&node.pods.attached, true)?);
        Ok(report)
    });
    match rules {
        Ok(report) => {
            restorable(
                &RULES,
                &report.done,
                "nft list ruleset; iptables-save",
                found,
            );
            impossible(&report.left, found);
        }
        Err(error) => found.unread("rules", error),
    }
}

fn restorable(check: &'static Check, done: &[String], command: &str, found: &mut Examination) {
    if done.is_empty() {
        return;
    }
    let finding = Finding::new(check, About::Node, format!("missing: {}", first_of(done)));
    let shows = "podwire resync --dry-run prints what is missing";
    found.add(finding.shown_by(command, shows).ours(&["resync"]));
}

fn impossible(left: &[String], found: &mut Examination) {
    for what in left {
        let finding = Finding::new(&IMPOSSIBLE, About::Node, what);
        let finding = finding.shown_by("podwire resync --dry-run", what);
        found.add(finding.advice("remove what is in its place, or create the pods again"));
    }
}

fn about(attachment: &Attachment) -> About {
    About::Pod {
        network: attachment.network.clone(),
        container_id: attachment.container_id.clone(),
    }
}

fn gone(attachment: &Attachment, found: &mut Examination) {
    let Home::Gone(path) = &attachment.home else {
        return;
    };
    let finding = Finding::new(&GONE, about(attachment), format!("{path} is gone"));
    let finding = finding.shown_by(
        format!("stat -L {}", quoted(path)),
        "No such file or directory",
    );
    found.add(finding.delete(
        &attachment.network,
        &attachment.container_id,
        &attachment.ifname,
    ));
}

fn uncached(node: &Node<'_>, attachment: &Attachment, found: &mut Examination) {
    let outside = attachment.outside.and_then(|it| node.survey.interface(it));
    let (None, Some(outside)) = (&attachment.cached, outside) else {
        return;
    };
    let name = &outside.link.name;
    // A file that cannot be read may be its file.
    let owner = attachment.owner();
    let may_be = |it: &networks::Unidentified| owner.as_ref().is_some_and(|owner| it.may_be(owner));
    if node.survey.unidentified.iter().any(may_be) {
        return;
    }
    let what = format!(
        "{name} is of {}, of which the cache has nothing",
        attachment.label()
    );
    let finding = Finding::new(&UNCACHED, about(attachment), what);
    let shows = format!(
        "alias {}",
        outside.link.alias.as_deref().unwrap_or_default()
    );
    let finding = finding.shown_by(format!("ip link show dev {name}"), shows);
    found.add(finding.advice(format!(
        "name the cache of its runtime with --cache-dir; if its container is gone: podwire del \
         --container-id {} -i {} {}",
        attachment.container_id, attachment.ifname, attachment.network
    )));
}

/// A reservation is left over if neither the cache nor the node has its attachment, and no
/// namespace has its address: another runtime may keep its cache elsewhere.
fn leaked(survey: &Survey, found: &mut Examination) {
    let of_all = survey.namespaces.iter().flat_map(|it| &it.interfaces);
    let addresses: std::collections::HashSet<IpAddr> = of_all
        .flat_map(|it| &it.addresses)
        .map(|it| it.address.ip())
        .collect();
    let mut networks = BTreeMap::<&str, Vec<_>>::new();
    for reservation in &survey.reservations {
        let may_live = survey.unidentified.iter().any(|it| {
            let owner = cni::Attachment::parse(
                &reservation.network,
                &reservation.container_id,
                &reservation.ifname,
            );
            owner.is_none_or(|owner| it.may_be(&owner))
        });
        if !addresses.contains(&reservation.address) && !may_live {
            networks
                .entry(&reservation.network)
                .or_default()
                .push(reservation);
        }
    }
    for (network, all) in networks {
        let texts: Vec<_> = all.iter().map(|it| it.address.to_string()).collect();
        let what = match texts.len() {
            1 => format!("{} is reserved, and its container is gone", texts[0]),
            count => format!(
                "{count} addresses are reserved for containers that are gone: {}",
                first_of(&texts)
            ),
        };
        let finding = Finding::new(&LEAKED, About::Network(network.to_owned()), what);
        let file = quoted(&all[0].file.display().to_string());
        let finding = finding.shown_by(format!("cat {file}"), &all[0].container_id);
        found.add(
            match survey.catalogue.named(network).and_then(|it| it.listed()) {
                Some(listed) if can_collect(listed) => {
                    finding.ours(&["gc", "--keep-cached", network])
                }
                _ => {
                    let files: Vec<_> = all
                        .iter()
                        .map(|it| quoted(&it.file.display().to_string()))
                        .collect();
                    finding.command(format!("rm {}", files.join(" ")))
                }
            },
        );
    }
}

/// Whether the version of a network has GC.
fn can_collect(listed: &networks::named::Listed) -> bool {
    let since = cni::version::Version::V1_1_0;
    !listed.list.disable_gc && listed.list.at_least(since).unwrap_or(false)
}

fn stray_ports(node: &Node<'_>, found: &mut Examination) {
    let unknown = UnknownOwners::find(node.contents, None, |it| !crate::pods::is_gone(&it.netns));
    let unknown = match unknown {
        Ok(unknown) => unknown,
        Err(error) => return found.unread("owners of published ports", error),
    };
    for owner in &unknown.gone {
        let attachment = owner.attachment();
        let is_cached = attachment.as_ref().is_some_and(|it| {
            node.survey
                .attachments
                .iter()
                .any(|known| known.owner().as_ref() == Some(it))
        });
        // DEL of that attachment, which is another finding, removes them.
        if is_cached {
            continue;
        }
        let about = match &attachment {
            Some(it) => About::Network(it.network.clone()),
            None => About::Node,
        };
        let finding = Finding::new(&STRAY_PORTS, about, format!("ports of {}", owner.name));
        let finding = finding.shown_by(
            "nft list table ip podwire_hostports",
            format!("comment \"{}\"", owner.name),
        );
        found.add(match attachment {
            Some(it) if node.survey.catalogue.named(&it.network).is_some() => {
                finding.ours(&["gc", "--keep-cached", &it.network])
            }
            Some(it) => finding.delete(&it.network, it.container_id.as_str(), it.ifname.as_str()),
            None => finding.advice("podwire gc --keep-cached NETWORK, with the pod's network"),
        });
    }
}
