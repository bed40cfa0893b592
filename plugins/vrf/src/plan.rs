//! Decides from the keys what to do. Pure: no system calls.

use anyhow::{Result, bail};
use cni::env::IfName;
use cni::faults::{Fault, Faults};
use netlink::Link;

use crate::conf::Conf;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The name of the VRF.
    pub name: IfName,
    /// Its table; `None` for a free one.
    pub table: Option<u32>,
}

impl Plan {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        if conf.vrfname.is_empty() {
            let msg = "configuration is expected to have a valid vrf name";
            return Err(Fault::new("vrfname", msg).into());
        }
        let name = IfName::parse_new(&conf.vrfname);
        let name = name.map_err(|error| {
            Fault::new(
                "vrfname",
                format!("vrfname {:?}: {}", conf.vrfname, error.msg),
            )
        })?;
        Ok(Self {
            name,
            table: Some(conf.table).filter(|table| *table != 0),
        })
    }

    /// Whether `link`, which has the name of the VRF, is that VRF.
    ///
    /// # Errors
    /// It is of another kind, or has another table than the configuration says.
    pub fn accept(&self, link: &Link) -> Result<()> {
        let name = &self.name;
        match (link.vrf_table, self.table) {
            (None, _) => bail!("Netlink {name} is not a VRF"),
            (Some(is), Some(wanted)) if is != wanted => {
                bail!("VRF {name} already exist with different routing table {is}")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(vrfname: &str, table: u32) -> Result<Plan, String> {
        let conf = Conf {
            vrfname: vrfname.into(),
            table,
        };
        Plan::new(&conf).map_err(|faults| faults.first().error.msg.clone())
    }

    #[test]
    fn the_name_is_one_of_an_interface() {
        assert_eq!(
            plan("", 1).unwrap_err(),
            "configuration is expected to have a valid vrf name"
        );
        for name in ["a/b", "a b", ".", "vrf%d", "0123456789abcdef"] {
            let error = plan(name, 1).unwrap_err();
            assert!(error.starts_with(&format!("vrfname {name:?}: ")), "{error}");
        }
        assert_eq!(plan("blue", 0).unwrap().table, None);
    }

    #[test]
    fn a_vrf_of_another_table_is_another_one() {
        let vrf = |vrf_table| Link {
            name: "blue".into(),
            vrf_table,
            ..Link::default()
        };
        let error = |table, link| plan("blue", table).unwrap().accept(&link).err();
        assert!(error(0, vrf(Some(7))).is_none() && error(7, vrf(Some(7))).is_none());
        assert_eq!(
            error(8, vrf(Some(7))).unwrap().to_string(),
            "VRF blue already exist with different routing table 7"
        );
        assert_eq!(
            error(0, vrf(None)).unwrap().to_string(),
            "Netlink blue is not a VRF"
        );
    }
}
