//! ipvlan: another link with the hardware address of an existing interface, distinguished by IP
//! addresses (Documentation/networking/ipvlan.rst). Created in creation.rs.

use std::{fmt, str::FromStr};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoIpVlan, IpVlanMode},
};

use crate::{Error, Netlink, link::data, request::decode};

/// Where the packets of the ipvlans of one parent are routed (ip-link(8), "IPVLAN"). All of them
/// have the same mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvlanMode {
    /// In the namespace of each. They have neighbours, broadcasts and multicasts.
    L2,
    /// In the namespace of the parent. They have no neighbours: there is no ARP.
    L3,
    /// The same, and the packets pass the packet filter there.
    L3s,
}

impl IpvlanMode {
    const ALL: [Self; 3] = [Self::L2, Self::L3, Self::L3s];

    pub(crate) fn code(self) -> IpVlanMode {
        match self {
            Self::L2 => IpVlanMode::L2,
            Self::L3 => IpVlanMode::L3,
            Self::L3s => IpVlanMode::L3S,
        }
    }
}

impl fmt::Display for IpvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L3s => "l3s",
        })
    }
}

impl FromStr for IpvlanMode {
    type Err = String;

    /// Reads the words of ip(8). The error is that of the Go plugins.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| format!("unknown ipvlan mode: {text:?}"))
    }
}

impl Netlink {
    /// The mode of the ipvlan called `name`, as the word of ip(8): `ip -d link show dev NAME`.
    /// `None` when there is no such link, or it is of another kind.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn ipvlan_mode(&self, name: &str) -> Result<Option<String>, Error> {
        let mode = self.find_as(name, |message| decode(message).map(|it| mode_of(&it)))?;
        Ok(mode.flatten())
    }
}

pub(crate) fn mode_of(message: &RouteNetlinkMessage) -> Option<String> {
    let data = data(message, |it| match it {
        InfoData::IpVlan(data) => Some(data),
        _ => None,
    })?;
    data.iter().find_map(|it| match it {
        InfoIpVlan::Mode(mode) => Some(mode.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_the_words_of_ip() {
        for mode in IpvlanMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(mode.code().to_string(), mode.to_string());
        }
        let unknown = "unknown ipvlan mode: \"L2\"".to_owned();
        assert_eq!("L2".parse::<IpvlanMode>(), Err(unknown));
    }
}
