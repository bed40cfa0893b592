//! DEL and GC of links in a pod whose parent is outside of it, such as macvlans, and of links in a
//! pod without a parent.
//!
//! The node has no trace of such a link. It is visible only in the pod, where a process with
//! CAP_NET_ADMIN can change its name, MAC and alias, but not its parent, which is in another
//! namespace, nor its VLAN. So the parent decides which links may be deleted, and name, MAC and
//! alias decide which of them belong to which attachment of the pod.

use std::path::Path;

use anyhow::{Result, bail};
use cni::request::{Del, Gc};
use cni::{Attachment, BestEffort, delegate};
use netlink::{Link, Mac, Netlink};
use netns::NetNs;

use crate::alias::{self, has_mark};
use crate::parent::is_of_kind;
use crate::pod;

/// The directory where all runtimes keep their network namespaces.
const NAMESPACES: &str = "/run/netns";

/// How often DEL lists the links of the pod, which can make new ones as long as it has one.
const ROUNDS: usize = 16;

/// The name of the attachment's link until it can have its own.
pub fn temporary_name(attachment: &Attachment) -> String {
    attachment.host_veth(0)
}

/// The links that a plugin makes in pods.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// The word of `ip link … type`.
    pub kind: &'static str,
    /// The parent is the pod's own, or there is none.
    pub parent_in_pod: bool,
    /// The VLAN id of a vlan: other vlans on its parent belong to others.
    pub vlan_id: Option<u16>,
}

impl Links {
    /// DEL of an attachment that consists of such a link and addresses.
    ///
    /// # Errors
    /// What the kernel or the IPAM plugin refuses.
    pub fn del<C>(self, request: &Del<C>) -> Result<()> {
        let mut all = BestEffort::new();
        pod::delete_and_release(&request.call, &mut all, |all| {
            all.step("delete the interface", || self.delete(request))
        });
        all.finish()
    }

    /// GC of such attachments.
    ///
    /// # Errors
    /// What the kernel or the IPAM plugin refuses.
    pub fn gc<C>(self, request: &Gc<C>) -> Result<()> {
        let mut all = BestEffort::new();
        all.step("delete interfaces", || collect(request, self.kind));
        all.step("collect addresses", || delegate::ipam_gc(&request.call));
        all.finish()
    }

    /// DEL: deletes the pod's link, whatever the pod has changed of it, and what a killed ADD has
    /// left.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn delete<C>(self, request: &Del<C>) -> Result<()> {
        let search = Search::new(request, self);
        pod::in_netns(request.netns.as_ref(), |pod| {
            let mut links = pod.list_links()?;
            let parents = search.parents(&links);
            for _ in 0..ROUNDS {
                links.retain(|link| search.finds(link, &parents));
                if links.is_empty() {
                    return Ok(());
                }
                for link in &links {
                    pod.remove(link)?;
                }
                // The pod may have made another link on top of the last one.
                links = pod.list_links()?;
            }
            let kind = self.kind;
            bail!("the pod makes {kind}s as fast as they are deleted")
        })
    }
}

/// A parent: its index, and the id of its namespace.
type ParentId = (Option<u32>, Option<i32>);

fn parent(link: &Link) -> ParentId {
    (link.link, link.link_netnsid)
}

/// What identifies the link of one attachment.
struct Search {
    links: Links,
    alias: String,
    name: String,
    temporary: String,
    /// Whether the runtime passes the result of ADD.
    was_added: bool,
    /// The MAC in that result, unless all links on the parent have the same one.
    mac: Option<Mac>,
}

impl Search {
    fn new<C>(request: &Del<C>, links: Links) -> Self {
        let attachment = &request.attachment;
        let name = attachment.ifname.to_string();
        let recorded: Option<Mac> = request.call.prev_result_hint().and_then(|previous| {
            let recorded = previous.in_container().rfind(|it| it.name == name)?;
            recorded.mac.parse().ok()
        });
        Self {
            links,
            alias: attachment.alias(),
            name,
            temporary: temporary_name(attachment),
            was_added: recorded.is_some(),
            mac: recorded.filter(|_| !has_mac_of_parent(links.kind)),
        }
    }

    /// The parents on which links without an alias are deleted, too, found in the first list of the
    /// pod's links. A link that the pod makes on top of ours has the same parent, and an ADD of
    /// podwire leaves no link without an alias.
    fn parents(&self, links: &[Link]) -> Vec<ParentId> {
        let own: Vec<_> = links.iter().filter(|link| self.is_own(link)).collect();
        let is_marked = |link: &&Link| link.alias.as_ref() == Some(&self.alias);
        if self.links.parent_in_pod {
            Vec::new()
        } else if own.is_empty() && self.was_added {
            // ADD made a link, and the pod has disguised it: it can be on any parent.
            let candidates = links.iter().filter(|link| self.is_similar(link));
            candidates.map(parent).collect()
        } else if own.iter().any(is_marked) {
            own.into_iter().map(parent).collect()
        } else {
            // The Go plugin made it, and may have made others without an alias.
            Vec::new()
        }
    }

    /// Whether DEL deletes `link`.
    fn finds(&self, link: &Link, parents: &[ParentId]) -> bool {
        let is_reached = || parents.contains(&parent(link)) && !has_mark(link);
        self.is_own(link) || self.is_similar(link) && is_reached()
    }

    /// Whether ADD would make such a link on its parent.
    fn is_similar(&self, link: &Link) -> bool {
        let has_id = self.links.vlan_id.is_none_or(|id| link.vlan_id == Some(id));
        self.is_candidate(link) && has_id
    }

    fn is_candidate(&self, link: &Link) -> bool {
        let is_foreign = link.link_netnsid.is_some();
        is_of_kind(link, self.links.kind) && (self.links.parent_in_pod || is_foreign)
    }

    fn is_own(&self, link: &Link) -> bool {
        let has_mac = self.mac.is_some() && link.mac == self.mac;
        let is_marked = link.alias.as_ref() == Some(&self.alias) || link.name == self.temporary;
        let is_alike = (has_mac || link.name == self.name) && !has_mark(link);
        self.is_candidate(link) && (is_marked || is_alike)
    }
}

/// Whether the links of `kind` on a parent all have the MAC of the parent.
fn has_mac_of_parent(kind: &str) -> bool {
    matches!(kind, "vlan" | "ipvlan")
}

/// GC: deletes the links of `kind` of attachments that are not valid, in all namespaces under
/// `/run/netns`. In other places, they are deleted with their namespace.
///
/// # Errors
/// What the kernel refuses.
pub fn collect<C>(request: &Gc<C>, kind: &str) -> Result<()> {
    let is_stale = alias::stale(&request.call.network, &request.valid);
    let mut all = BestEffort::new();
    let entries = std::fs::read_dir(NAMESPACES).into_iter().flatten();
    for entry in entries.flatten() {
        // A namespace that cannot be opened may be in use.
        let Some((pod, links)) = list_links(&entry.path()) else {
            continue;
        };
        for link in links.iter().filter(|it| it.is_kind(kind) && is_stale(it)) {
            all.step(&link.name, || Ok(pod.remove(link)?));
        }
    }
    all.finish()
}

fn list_links(netns: &Path) -> Option<(Netlink, Vec<Link>)> {
    let pod = Netlink::open_in(&NetNs::open(netns).ok()?).ok()?;
    let links = pod.list_links().ok()?;
    Some((pod, links))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::OperState;

    const OURS: &str = "podwire:net/a/eth0";

    fn search(mac: Option<Mac>) -> Search {
        let links = Links {
            kind: "macvlan",
            parent_in_pod: false,
            vlan_id: None,
        };
        Search {
            links,
            alias: OURS.into(),
            name: "eth0".into(),
            temporary: "veth01234567".into(),
            was_added: mac.is_some(),
            mac,
        }
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn link(name: &str, of: u8, alias: Option<&str>) -> Link {
        Link {
            index: 2,
            name: name.into(),
            mac: Some(mac(of)),
            mtu: 1500,
            kind: Some("macvlan".into()),
            link: Some(7),
            link_netnsid: Some(0),
            up: true,
            operstate: OperState::Up,
            alias: alias.map(Into::into),
            ..Link::default()
        }
    }

    fn found(search: &Search, links: &[Link]) -> Vec<String> {
        let parents = search.parents(links);
        let found = links.iter().filter(|link| search.finds(link, &parents));
        found.map(|link| link.name.clone()).collect()
    }

    #[test]
    fn it_is_known_by_alias_mac_or_name() {
        let other = link("net1", 9, Some("podwire:net/a/net1"));
        for own in [
            link("x", 5, Some(OURS)),
            link("x", 1, None),
            link("eth0", 5, None),
            link("veth01234567", 5, None),
        ] {
            let name = own.name.clone();
            assert_eq!(found(&search(Some(mac(1))), &[other.clone(), own]), [name]);
        }
    }

    #[test]
    fn one_that_shows_nothing_of_itself_goes_where_add_has_made_one() {
        let hidden = link("x", 5, None);
        let other = link("net1", 9, Some("podwire:net/a/net1"));
        let links = [hidden, other];
        assert_eq!(found(&search(Some(mac(1))), &links), ["x"]);
        // After an ADD that has failed, it may be that of another attachment.
        assert_eq!(found(&search(None), &links), [""; 0]);
    }

    #[test]
    fn what_the_pod_made_on_the_same_parent_goes_with_it() {
        let mut tap = link("tap", 5, None);
        tap.kind = Some("macvtap".into());
        let mut elsewhere = link("far", 6, None);
        elsewhere.link = Some(8);
        let own = link("eth0", 1, Some(OURS));
        let links = [
            own,
            tap,
            elsewhere,
            link("net1", 9, Some("podwire:o/a/net1")),
        ];
        assert_eq!(found(&search(None), &links), ["eth0", "tap"]);
    }

    #[test]
    fn an_attachment_without_an_alias_may_have_siblings_without_one() {
        let links = [link("eth0", 1, None), link("net1", 9, None)];
        assert_eq!(found(&search(Some(mac(1))), &links), ["eth0"]);
    }

    #[test]
    fn what_the_pod_has_of_its_own_stays() {
        let mut bridge = link("eth0", 1, None);
        bridge.kind = Some("bridge".into());
        let mut nested = link("x", 1, None);
        nested.link_netnsid = None;
        let links = [bridge, nested];
        assert_eq!(found(&search(Some(mac(1))), &links), [""; 0]);
    }

    #[test]
    fn a_vlan_is_known_by_its_id_and_its_parent() {
        let vlan = |name: &str, id: u16| Link {
            kind: Some("vlan".into()),
            vlan_id: Some(id),
            ..link(name, 1, None)
        };
        let links = Links {
            kind: "vlan",
            parent_in_pod: false,
            vlan_id: Some(5),
        };
        let search = |was_added| Search {
            links,
            was_added,
            ..search(None)
        };
        // All vlans of a parent have its MAC.
        let disguised = [vlan("x", 5), vlan("net1", 6)];
        assert_eq!(found(&search(true), &disguised), ["x"]);
        assert_eq!(found(&search(false), &disguised), [""; 0]);
        let mut own = vlan("eth0", 5);
        own.alias = Some(OURS.into());
        assert_eq!(found(&search(true), &[own, vlan("net1", 6)]), ["eth0"]);
    }

    #[test]
    fn a_parent_in_the_pod_is_the_pods_own() {
        let mut own = link("eth0", 1, Some(OURS));
        own.link_netnsid = None;
        let mut other = link("x", 5, None);
        other.link_netnsid = None;
        let mut search = search(Some(mac(1)));
        search.links.parent_in_pod = true;
        assert_eq!(found(&search, &[own, other]), ["eth0"]);
    }
}
