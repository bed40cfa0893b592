//! macvlan: another hardware address on an existing interface. Created in creation.rs.

use std::{fmt, str::FromStr};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoMacVlan, MacVlanMode},
};

use crate::{Error, Link, Netlink, link::data, request::decode};

/// How the macvlans of one parent communicate (ip-link(8), "MACVLAN").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// With each other, inside the host.
    Bridge,
    /// Not with each other, not even through the switch.
    Private,
    /// With each other if the switch sends frames back to the port they came from.
    Vepa,
    /// There is only one macvlan. It has the parent's hardware address.
    Passthru,
}

impl MacvlanMode {
    const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    pub(crate) fn code(self) -> MacVlanMode {
        match self {
            Self::Bridge => MacVlanMode::Bridge,
            Self::Private => MacVlanMode::Private,
            Self::Vepa => MacVlanMode::Vepa,
            Self::Passthru => MacVlanMode::Passthrough,
        }
    }
}

impl fmt::Display for MacvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        })
    }
}

impl FromStr for MacvlanMode {
    type Err = String;

    /// Reads the words of ip(8). The error is that of the Go plugins.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| format!("unknown macvlan mode: {text:?}"))
    }
}

/// An existing macvlan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// The link. Its [`Link::link`] is the parent's index, in the namespace that
    /// [`Link::link_netnsid`] names.
    pub link: Link,
    /// The word of ip(8) for its mode, which may be one that [`MacvlanMode`] lacks (`source`).
    pub mode: String,
}

impl Netlink {
    /// The macvlan called `name`: `ip -d link show dev NAME`. `None` when the link is of another
    /// kind.
    ///
    /// # Errors
    /// `find link NAME: Link not found` when there is no link of that name.
    pub fn get_macvlan(&self, name: &str) -> Result<Option<Macvlan>, Error> {
        let found = self.find_as(name, |message| {
            let mode = decode(message).and_then(|it| mode_of(&it));
            Some((Link::read(message)?, mode))
        })?;
        let missing = || Error::no_link(format!("find link {name}"));
        let (link, mode) = found.ok_or_else(missing)?;
        Ok(mode.map(|mode| Macvlan { link, mode }))
    }
}

pub(crate) fn mode_of(message: &RouteNetlinkMessage) -> Option<String> {
    let data = data(message, |it| match it {
        InfoData::MacVlan(data) => Some(data),
        _ => None,
    })?;
    data.iter().find_map(|it| match it {
        InfoMacVlan::Mode(mode) => Some(mode.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_the_words_of_ip() {
        for mode in MacvlanMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(mode.code().to_string(), mode.to_string());
        }
        let unknown = "unknown macvlan mode: \"source\"".to_owned();
        assert_eq!("source".parse::<MacvlanMode>(), Err(unknown));
    }
}
