//! Decides from the keys what to do. Pure: no system calls.

use anyhow::Result;
use cni::faults::{Checks, Fault, Faults};
use cni::{AddResult, Attachment, Code, Error};
use netlink::{IpvlanMode, LinkKind, LinkSpec, Parent};
use wiring::mtu::RANGE;
use wiring::parent::{Master, ParentSpec};
use wiring::remains;

use crate::conf::Conf;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which interface is the parent.
    pub parent: ParentSpec,
    /// Where packets are routed.
    pub mode: IpvlanMode,
    /// MTU of the pod's interface; `None` for the parent's. It may be larger than the parent's: with
    /// l3 the node fragments the packets.
    pub mtu: Option<u32>,
}

impl Plan {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let mode = checks.take(mode(&conf.mode));
        let mtu = checks.take(mtu(conf.mtu));
        checks.finish(|| {
            Some(Self {
                parent: ParentSpec::new(&conf.master, conf.link_in_container),
                mode: mode?,
                mtu: mtu?,
            })
        })
    }

    /// Chained, without the key `master`: the interface of the result `previous` is the parent.
    ///
    /// # Errors
    /// Code 7: there is none, or there are several.
    pub fn chain(&mut self, previous: Option<&AddResult>) -> Result<(), Error> {
        let (Master::DefaultRoute, Some(previous)) = (&self.parent.master, previous) else {
            return Ok(());
        };
        match &previous.interfaces[..] {
            [one] if !one.name.is_empty() => {
                self.parent.master = Master::Named(one.name.clone());
                Ok(())
            }
            _ => {
                let msg = "chained master failure. PrevResult lacks a single named interface";
                Err(Code::InvalidConfig.err(msg))
            }
        }
    }

    /// The link to create for `attachment` on `parent`, whose MAC it has.
    pub fn spec(&self, attachment: &Attachment, parent: &Parent) -> LinkSpec {
        LinkSpec {
            name: attachment.ifname.to_string(),
            temporary: remains::temporary_name(attachment),
            parent: Some(parent.link.index),
            mtu: self.mtu,
            mac: None,
            kind: LinkKind::Ipvlan { mode: self.mode },
        }
    }
}

fn mode(text: &str) -> Result<IpvlanMode, Fault> {
    match text {
        "" => Ok(IpvlanMode::L2),
        text => text.parse().map_err(|msg: String| Fault::new("mode", msg)),
    }
}

fn mtu(mtu: i64) -> Result<Option<u32>, Fault> {
    if mtu != 0 && !RANGE.contains(&mtu) {
        let (low, high) = (RANGE.start(), RANGE.end());
        let msg = format!("invalid MTU {mtu}, must be 0 or [{low}, {high}]");
        return Err(Fault::new("mtu", msg));
    }
    Ok(u32::try_from(mtu).ok().filter(|mtu| *mtu != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::result::Interface;

    fn plan(conf: Conf) -> Result<Plan, Vec<String>> {
        let msgs = |faults: Faults| faults.into_iter().map(|it| it.error.msg).collect();
        Plan::new(&conf).map_err(msgs)
    }

    #[test]
    fn every_fault_is_found() {
        let faults = plan(Conf {
            mode: "bridge".into(),
            mtu: -1,
            ..Conf::default()
        });
        let expected = [
            "unknown ipvlan mode: \"bridge\"",
            "invalid MTU -1, must be 0 or [68, 65535]",
        ];
        assert_eq!(faults.unwrap_err(), expected);
    }

    #[test]
    fn the_mtu_is_that_of_the_parent_or_one_that_an_interface_can_have() {
        let mtu = |mtu| {
            let conf = Conf {
                mtu,
                ..Conf::default()
            };
            plan(conf).map(|it| it.mtu)
        };
        assert_eq!(mtu(0), Ok(None));
        assert_eq!((mtu(68), mtu(65535)), (Ok(Some(68)), Ok(Some(65535))));
        assert!(mtu(67).is_err() && mtu(65536).is_err());
    }

    fn chained(master: &str, names: &[&str]) -> Result<String, String> {
        let mut plan = plan(Conf {
            master: master.into(),
            ..Conf::default()
        })
        .unwrap();
        let interface = |name: &&str| Interface {
            name: (*name).to_owned(),
            ..Interface::default()
        };
        let previous = AddResult {
            interfaces: names.iter().map(interface).collect(),
            ..AddResult::default()
        };
        plan.chain(Some(&previous)).map_err(|error| error.msg)?;
        Ok(plan.parent.master.to_string())
    }

    #[test]
    fn a_single_previous_interface_is_the_parent_unless_one_is_named() {
        assert_eq!(chained("", &["eth0"]), Ok("eth0".to_owned()));
        assert_eq!(chained("eth1", &["eth0", "x"]), Ok("eth1".to_owned()));
        for names in [&[][..], &[""], &["cni0", "eth0"]] {
            let error = "chained master failure. PrevResult lacks a single named interface";
            assert_eq!(chained("", names), Err(error.to_owned()));
        }
        let mut alone = plan(Conf::default()).unwrap();
        alone.chain(None).unwrap();
        assert_eq!(alone.parent.master, Master::DefaultRoute);
    }
}
