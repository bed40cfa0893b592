//! The lease of this node: which subnet it has, and how it gets and keeps it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flannel::{BackendType, Backing, Config, Lease, Subnet};
use ipnetwork::IpNetwork;
use store::{Entry, Error, Expected, LeaseId, Listing, Revision, Store};

/// flanneld chooses among as many.
const CHOICES: usize = 100;

/// What this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where other nodes send to.
    pub public_ip: Ipv4Addr,
    /// The same over IPv6, in a network of both families.
    pub public_ipv6: Option<Ipv6Addr>,
    /// What only this node writes, until it is restarted.
    pub owner: String,
}

/// The subnet of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The subnet.
    pub subnet: Subnet,
    /// The revision of the key, as it was last written or seen.
    pub revision: Revision,
    /// The store's lease; `None` for a subnet that an operator has reserved, which stays.
    pub lease: Option<LeaseId>,
    /// What the key says.
    pub value: Lease,
}

/// A network's place in the store, and this node's wishes.
pub struct LeaseSpec<'a, S> {
    /// The store.
    pub store: &'a S,
    /// The prefix of the network.
    pub prefix: &'a str,
    /// Its configuration.
    pub config: &'a Config,
    /// This node.
    pub node: &'a Node,
    /// How long the lease lasts.
    pub ttl: Duration,
    /// The subnet that this node had, if it had one.
    pub before: Option<Subnet>,
}

impl<S: Store> LeaseSpec<'_, S> {
    /// Takes a subnet, as the `listing` allows; `None` if another node was faster, so that the list
    /// is out of date.
    ///
    /// In this order: the subnet that this node holds; one that has its address, so that a node
    /// keeps its subnet when it is started again, and when it changes from flanneld; the one that
    /// it had before; a free one.
    ///
    /// # Errors
    /// The store fails, or no subnet is free.
    pub async fn take(&self, listing: &Listing) -> Result<Option<Held>, Error> {
        let kind = self.config.backend.kind;
        let taken = leases(self.prefix, kind, listing);
        if !kind.has_subnets() {
            return self.take_place(&taken).await;
        }
        if let Some((subnet, entry, lease)) = self.own(&taken) {
            return self.take_over(subnet, entry, lease.as_ref()).await;
        }
        let all: Vec<Subnet> = taken.iter().map(|it| it.0).collect();
        let is_free = |it: &Subnet| !all.iter().any(|other| other.overlaps(it));
        let before = self
            .before
            .filter(|it| self.config.allows(it) && is_free(it));
        let subnet = match before {
            Some(subnet) => subnet,
            None => {
                let free = flannel::free_subnets(self.config, &all, CHOICES);
                let Some(subnet) = by_chance(&free) else {
                    let network = self.config.v4.network;
                    let count = all.len();
                    let why = format!("no subnet of {network} is free: {count} nodes have one");
                    return Err(Error::Refused(why));
                };
                subnet
            }
        };
        self.create(subnet).await
    }

    /// Takes the key of this node's address, in a network without subnets.
    async fn take_place(&self, taken: &[Taken]) -> Result<Option<Held>, Error> {
        let place = Subnet::host(self.node.public_ip);
        for (other, entry, lease) in taken {
            let owner = lease.as_ref().and_then(|it| it.owner.as_ref());
            if *other != place && owner == Some(&self.node.owner) {
                // The node had another address.
                self.store.delete(&entry.key, entry.revision).await?;
            }
        }
        match taken.iter().find(|it| it.0 == place) {
            Some((_, entry, lease)) => self.take_over(place, entry, lease.as_ref()).await,
            None => self.create(place).await,
        }
    }

    /// Writes a key that does not exist.
    async fn create(&self, subnet: Subnet) -> Result<Option<Held>, Error> {
        let lease = self.store.grant(self.ttl).await?;
        let value = self.value(subnet, None);
        let held = self
            .write(subnet, value, Expected::Absent, Some(lease))
            .await;
        if !matches!(held, Ok(Some(_))) {
            // Otherwise it would stay for a day with no key.
            let _ = self.store.revoke(lease).await;
        }
        held
    }

    /// The lease in the list that is this node's.
    fn own<'t>(&self, taken: &'t [Taken]) -> Option<(Subnet, &'t Entry, &'t Option<Lease>)> {
        let by = |is_own: &dyn Fn(&Lease) -> bool| {
            let mut fitting = taken.iter().filter(|it| self.config.allows(&it.0));
            fitting.find(|it| it.2.as_ref().is_some_and(is_own))
        };
        let found = by(&|it| it.owner.as_ref() == Some(&self.node.owner))
            .or_else(|| by(&|it| it.public_ip == Some(self.node.public_ip)));
        found.map(|(subnet, entry, lease)| (*subnet, entry, lease))
    }

    /// Makes the key say what this node is. A key that does so already is not written.
    async fn take_over(
        &self,
        subnet: Subnet,
        entry: &Entry,
        found: Option<&Lease>,
    ) -> Result<Option<Held>, Error> {
        let value = self.value(subnet, found);
        let lease = match entry.lease {
            // A reservation of the operator stays one.
            None => None,
            Some(lease) => match self.store.renew(lease).await? {
                Some(left) if left == self.ttl => Some(lease),
                // It has ended, or was granted for another time.
                _ => Some(self.store.grant(self.ttl).await?),
            },
        };
        if found == Some(&value) && lease == entry.lease {
            return Ok(Some(Held {
                subnet,
                revision: entry.revision,
                lease,
                value,
            }));
        }
        self.write(subnet, value, Expected::At(entry.revision), lease)
            .await
    }

    async fn write(
        &self,
        subnet: Subnet,
        value: Lease,
        expected: Expected,
        lease: Option<LeaseId>,
    ) -> Result<Option<Held>, Error> {
        let key = key(self.prefix, self.config.backend.kind, &subnet);
        let text = value.to_json();
        let done = self
            .store
            .put(&key, text.as_bytes(), expected, lease)
            .await?;
        Ok(done.map(|revision| Held {
            subnet,
            revision,
            lease,
            value,
        }))
    }

    /// What the key of `subnet` is to say. The MACs stay as they were `found`: the other nodes know
    /// them, and after flanneld its device is still there.
    fn value(&self, subnet: Subnet, found: Option<&Lease>) -> Lease {
        let vni = self.config.backend.vni;
        let kind = self.config.backend.kind;
        let backing = |found: Option<Backing>, subnet: IpNetwork| {
            (kind == BackendType::Vxlan).then(|| Backing {
                vni,
                mac: found.map_or_else(|| overlay::subnet_mac(vni, subnet), |it| it.mac),
            })
        };
        Lease {
            public_ip: Some(self.node.public_ip),
            public_ipv6: self.node.public_ipv6.filter(|_| subnet.v6.is_some()),
            backend_type: kind.name().to_owned(),
            v4: backing(found.and_then(|it| it.v4), IpNetwork::V4(subnet.v4)),
            v6: subnet
                .v6
                .and_then(|v6| backing(found.and_then(|it| it.v6), IpNetwork::V6(v6))),
            owner: Some(self.node.owner.clone()),
        }
    }
}

/// A subnet that is leased: its key, and its value if that can be read.
type Taken = (Subnet, Entry, Option<Lease>);

fn leases(prefix: &str, kind: BackendType, listing: &Listing) -> Vec<Taken> {
    let entries = listing.entries.iter();
    let leases = entries.filter_map(|entry| {
        let subnet = subnet(prefix, kind, &entry.key)?;
        Some((subnet, entry.clone(), Lease::parse(&entry.value).ok()))
    });
    leases.collect()
}

/// The subnet that a key is about; [`Subnet::host`] in a network without subnets.
pub fn subnet(prefix: &str, kind: BackendType, key: &str) -> Option<Subnet> {
    if kind.has_subnets() {
        let subnet = key.strip_prefix(&flannel::leases_prefix(prefix))?;
        return subnet.parse().ok();
    }
    let address = key.strip_prefix(&flannel::nodes_prefix(prefix))?;
    address.parse().ok().map(Subnet::host)
}

/// The key of a lease.
pub fn key(prefix: &str, kind: BackendType, subnet: &Subnet) -> String {
    if kind.has_subnets() {
        format!("{}{subnet}", flannel::leases_prefix(prefix))
    } else {
        format!("{}{}", flannel::nodes_prefix(prefix), subnet.v4.ip())
    }
}

/// What tells this node from others with its address, and this process from none: the boot, and the
/// network namespace.
pub fn owner() -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let netns = std::fs::metadata("/proc/self/ns/net").map_or(0, |it| it.ino());
    format!("{}/{netns}", boot.trim())
}

/// One of them. Nodes that start together choose differently.
fn by_chance(choices: &[Subnet]) -> Option<Subnet> {
    let chance = RandomState::new().build_hasher().finish() as usize;
    let count = choices.len().max(1);
    choices.get(chance % count).copied()
}
