//! The keys that begin with `ipMasq`.

use cni::Attachment;
use cni::address::network_of;
use cni::faults::{Checks, Fault, Faults};
use cni::result::IpConfig;
use ipnetwork::IpNetwork;
use packet_filter::node::Wanted;
use packet_filter::{Kind, Masquerade};

/// How packets that leave the pods' subnets are masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerading {
    /// The back end that the configuration names.
    pub backend: Option<Kind>,
    /// Whether source ports are chosen at random.
    pub random_fully: bool,
    /// Destinations that are not masqueraded.
    pub except: Vec<IpNetwork>,
    /// Whether IPv4 and IPv6 are masqueraded.
    pub families: [bool; 2],
    /// The device that leads to the network's pods on other nodes.
    pub not_through: Option<String>,
}

/// The keys of a configuration, as they are written.
#[derive(Clone, Copy, Debug)]
pub struct MasqueradeKeys<'a> {
    /// `ipMasq`
    pub wanted: bool,
    /// `ipMasqBackend`
    pub backend: Option<&'a str>,
    /// `ipMasqRandomFully`
    pub random_fully: bool,
    /// `ipMasqExcept`
    pub except: &'a [String],
    /// `ipMasqFamilies`
    pub families: Option<&'a [String]>,
}

impl Masquerading {
    /// Reads the keys; `None` without `ipMasq`.
    ///
    /// # Errors
    /// Code 7: `unknown ipmasq backend "x"` (the Go plugin notices that after everything else
    /// was set up); an exception that is not a network; an unknown family.
    pub fn parse(keys: &MasqueradeKeys<'_>) -> Result<Option<Self>, Faults> {
        let mut checks = Checks::default();
        let backend = Kind::of_key(keys.backend).map_err(|name| {
            let unknown = format!("unknown ipmasq backend {name:?}");
            Fault::new("ipMasqBackend", unknown)
        });
        let backend = checks.take(backend);
        let except = checks.each("ipMasqExcept", keys.except, exception);
        let families = families(keys.families, &mut checks);
        let wanted = checks.finish(|| {
            Some(Self {
                backend: backend?,
                random_fully: keys.random_fully,
                except,
                families,
                not_through: None,
            })
        })?;
        Ok(Some(wanted).filter(|_| keys.wanted))
    }

    /// Without the families, IPv4 and IPv6, that are not `wanted`; `None` if no family is left.
    pub fn only(self, wanted: [bool; 2]) -> Option<Self> {
        let [v4, v6] = self.families;
        let families = [v4 && wanted[0], v6 && wanted[1]];
        families
            .contains(&true)
            .then_some(Self { families, ..self })
    }

    /// The masquerade of an attachment with the addresses `ips`.
    pub fn of(&self, owner: &Attachment, ips: &[IpConfig]) -> Wanted<Masquerade> {
        let is_of_family = |it: &IpNetwork| self.families[usize::from(it.is_ipv6())];
        let addresses = ips.iter().map(|ip| ip.address.0);
        Wanted {
            rules: Masquerade {
                owner: owner.clone(),
                addresses: addresses.filter(is_of_family).collect(),
                random_fully: self.random_fully,
                except: self.except.clone(),
                not_through: self.not_through.clone(),
            },
            backend: self.backend,
        }
    }
}

/// A destination that is not masqueraded. Host bits are cleared, because iptables lists networks
/// without them.
fn exception(key: &str, text: &String) -> Result<IpNetwork, Fault> {
    let fault = |why: String| Fault::new(key, format!("ipMasqExcept: {text:?} {why}"));
    let network: IpNetwork = text
        .parse()
        .map_err(|error| fault(format!("is not a network: {error}")))?;
    if network.prefix() == 0 {
        let why = "is every destination: use ipMasqFamilies".to_owned();
        return Err(fault(why));
    }
    Ok(network_of(network))
}

/// Both families, unless the key names some.
fn families(named: Option<&[String]>, checks: &mut Checks) -> [bool; 2] {
    let Some(named) = named else {
        return [true; 2];
    };
    let mut families = [false; 2];
    for (index, family) in named.iter().enumerate() {
        match family.as_str() {
            "ipv4" => families[0] = true,
            "ipv6" => families[1] = true,
            _ => {
                let msg = format!("ipMasqFamilies: {family:?} is neither \"ipv4\" nor \"ipv6\"");
                checks.add(Fault::new(format!("ipMasqFamilies[{index}]"), msg));
            }
        }
    }
    families
}
