//! What an attachment has left in a namespace.
//!
//! The host has nothing of a macvlan: which one is ours can be seen in the pod only, where
//! a pod with CAP_NET_ADMIN gives it another name, MAC or alias. It cannot change the parent,
//! which is outside its namespace. So the parent decides what may be deleted; name, MAC and
//! alias decide what belongs to which attachment of the pod.

use anyhow::{Result, bail};
use cni::BestEffort;
use cni::conf::ValidAttachment;
use cni::request::{Del, alias_prefix};
use netlink::{Link, Mac, Netlink};
use netns::NetNs;
use wiring::{pod, port};

use crate::conf::Conf;
use crate::plan;

/// Where every runtime has its network namespaces.
const NAMESPACES: &str = "/run/netns";

/// How every alias begins that this suite writes.
const MARK: &str = "podwire:";

/// What is known of the link of one attachment.
struct Sought {
    alias: String,
    name: String,
    temporary: String,
    /// As ADD reported it, if the runtime passes its result on.
    mac: Option<Mac>,
    /// The parent is in the pod.
    parent_in_pod: bool,
}

/// DEL: deletes the pod's interface, whatever the pod has made of it, and what an ADD has
/// left that was killed between making and renaming it.
///
/// # Errors
/// When the kernel refuses.
pub fn delete(request: &Del<Conf>) -> Result<()> {
    let sought = Sought::new(request);
    pod::in_netns(request.netns.as_ref(), |pod| {
        let links = pod.list_links()?;
        let reach = sought.reach(&links);
        let mut doomed = sought.doomed(&reach, &links);
        for _ in 0..ROUNDS {
            if doomed.is_empty() {
                return Ok(());
            }
            for link in &doomed {
                pod.remove(link)?;
            }
            // The pod may have made one more on the last that there was.
            doomed = sought.doomed(&reach, &pod.list_links()?);
        }
        bail!("the pod makes macvlans as fast as they are deleted")
    })
}

/// How often the pod is looked at. It can make a macvlan as long as it has one.
const ROUNDS: usize = 16;

/// Which macvlans go that do not say whose they are.
#[derive(Debug, PartialEq)]
enum Reach {
    /// None: there may be attachments without an alias.
    None,
    /// Those on these parents: what is made on a macvlan is made on its parent, and no ADD of
    /// ours leaves one without an alias.
    On(Vec<(Option<u32>, Option<i32>)>),
    /// All: ADD has made one, and the pod has hidden it.
    All,
}

impl Sought {
    fn new(request: &Del<Conf>) -> Self {
        let attachment = &request.attachment;
        Self {
            alias: attachment.alias(),
            name: attachment.ifname.to_string(),
            temporary: plan::temporary_name(attachment),
            mac: recorded_mac(request),
            parent_in_pod: request.conf.link_in_container,
        }
    }

    /// How far DEL goes, as `links`, all of the pod, are at first.
    fn reach(&self, links: &[Link]) -> Reach {
        let own = links.iter().filter(|link| self.is_ours(link));
        let own: Vec<_> = own.collect();
        let is_marked = |link: &&Link| link.alias.as_deref() == Some(&self.alias);
        match () {
            // The parent is the pod's own.
            () if self.parent_in_pod => Reach::None,
            () if own.is_empty() && self.mac.is_some() => Reach::All,
            () if own.iter().any(is_marked) => Reach::On(own.into_iter().map(parent).collect()),
            () => Reach::None,
        }
    }

    /// Those of `links` that have to go.
    fn doomed(&self, reach: &Reach, links: &[Link]) -> Vec<Link> {
        let goes = |link: &&Link| self.is_ours(link) || self.is_reached(reach, link);
        links.iter().filter(goes).cloned().collect()
    }

    fn is_reached(&self, reach: &Reach, link: &Link) -> bool {
        let within = match reach {
            Reach::None => false,
            Reach::On(parents) => parents.contains(&parent(link)),
            Reach::All => true,
        };
        within && self.may_be_ours(link) && !is_another(link)
    }

    /// A pod with CAP_NET_ADMIN makes macvtaps, too.
    fn may_be_ours(&self, link: &Link) -> bool {
        let shares_a_parent = link.is_kind("macvlan") || link.is_kind("macvtap");
        shares_a_parent && (self.parent_in_pod || link.link_netnsid.is_some())
    }

    fn is_ours(&self, link: &Link) -> bool {
        let has_mac = self.mac.is_some() && link.mac == self.mac;
        let says_so = link.alias.as_deref() == Some(&self.alias) || link.name == self.temporary;
        let looks_so = (has_mac || link.name == self.name) && !is_another(link);
        self.may_be_ours(link) && (says_so || looks_so)
    }
}

/// Whether the link says that it is of an attachment. One that is ours was told before.
fn is_another(link: &Link) -> bool {
    let alias = link.alias.as_deref();
    alias.is_some_and(|alias| alias.starts_with(MARK))
}

fn parent(link: &Link) -> (Option<u32>, Option<i32>) {
    (link.link, link.link_netnsid)
}

fn recorded_mac(request: &Del<Conf>) -> Option<Mac> {
    let previous = request.call.prev_result_hint()?;
    let ifname = request.attachment.ifname.as_str();
    let mut interfaces = previous.interfaces.iter();
    let recorded = interfaces.rfind(|it| it.name == ifname && !it.sandbox.is_empty())?;
    recorded.mac.parse().ok()
}

/// GC: deletes the macvlans of `network` whose attachment is not in `valid`, in all
/// namespaces of the directory that the runtimes use. Those in other places go with their
/// namespace.
///
/// # Errors
/// When the kernel refuses to delete one.
pub fn collect(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let prefix = alias_prefix(network);
    let used: Vec<_> = valid
        .iter()
        .filter_map(|valid| port::alias_of(network, valid))
        .collect();
    let mut all = BestEffort::new();
    for entry in std::fs::read_dir(NAMESPACES)
        .into_iter()
        .flatten()
        .flatten()
    {
        // What cannot be entered cannot be looked at; it may be in use.
        let Some((pod, links)) = NetNs::open(&entry.path()).ok().and_then(macvlans) else {
            continue;
        };
        for link in links {
            let alias = link.alias.as_ref();
            if alias.is_some_and(|alias| alias.starts_with(&prefix) && !used.contains(alias)) {
                all.step(&link.name, || Ok(pod.remove(&link)?));
            }
        }
    }
    all.finish()
}

fn macvlans(netns: NetNs) -> Option<(Netlink, Vec<Link>)> {
    let pod = Netlink::open_in(&netns).ok()?;
    let mut links = pod.list_links().ok()?;
    links.retain(|link| link.is_kind("macvlan"));
    Some((pod, links))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::OperState;

    const OURS: &str = "podwire:net/a/eth0";

    fn sought(mac: Option<Mac>) -> Sought {
        Sought {
            alias: OURS.into(),
            name: "eth0".into(),
            temporary: "veth01234567".into(),
            mac,
            parent_in_pod: false,
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
            master: None,
            link: Some(7),
            link_netnsid: Some(0),
            up: true,
            operstate: OperState::Up,
            promisc: false,
            alias: alias.map(Into::into),
            vlan_filtering: None,
            port: None,
            accept_ra: None,
            heard_router: false,
        }
    }

    fn doomed(sought: &Sought, links: &[Link]) -> Vec<String> {
        let doomed = sought.doomed(&sought.reach(links), links);
        doomed.into_iter().map(|link| link.name).collect()
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
            assert_eq!(doomed(&sought(Some(mac(1))), &[other.clone(), own]), [name]);
        }
    }

    #[test]
    fn one_that_shows_nothing_of_itself_goes_where_add_has_made_one() {
        let hidden = link("x", 5, None);
        let other = link("net1", 9, Some("podwire:net/a/net1"));
        let links = [hidden, other];
        assert_eq!(doomed(&sought(Some(mac(1))), &links), ["x"]);
        // After an ADD that has failed, it may be that of another attachment.
        assert_eq!(doomed(&sought(None), &links), [""; 0]);
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
        assert_eq!(doomed(&sought(None), &links), ["eth0", "tap"]);
    }

    #[test]
    fn an_attachment_without_an_alias_may_have_siblings_without_one() {
        let links = [link("eth0", 1, None), link("net1", 9, None)];
        assert_eq!(doomed(&sought(Some(mac(1))), &links), ["eth0"]);
    }

    #[test]
    fn what_the_pod_has_of_its_own_stays() {
        let mut bridge = link("eth0", 1, None);
        bridge.kind = Some("bridge".into());
        let mut nested = link("x", 1, None);
        nested.link_netnsid = None;
        let links = [bridge, nested];
        assert_eq!(doomed(&sought(Some(mac(1))), &links), [""; 0]);
    }

    #[test]
    fn a_parent_in_the_pod_is_the_pods_own() {
        let mut own = link("eth0", 1, Some(OURS));
        own.link_netnsid = None;
        let mut other = link("x", 5, None);
        other.link_netnsid = None;
        let mut sought = sought(Some(mac(1)));
        sought.parent_in_pod = true;
        assert_eq!(doomed(&sought, &[own, other]), ["eth0"]);
    }
}
