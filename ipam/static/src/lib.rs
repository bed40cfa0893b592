//! static: hands out the addresses of its configuration. It keeps no state, so two containers
//! get the same address if both request it.

pub mod conf;
pub mod plan;

use anyhow::{Result, bail};
use cni::result::IpConfig;
use cni::{Add, AddResult, Check, Del, Gc, Plugin, Status, Undo};

use crate::conf::Conf;
use crate::plan::{Address, Plan};

/// The plugin.
#[derive(Debug)]
pub struct Static;

impl Plugin for Static {
    const NAME: &'static str = "static";
    type Conf = Conf;

    fn add(request: &Add<Conf>, _undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf, request.call.version, &request.call.args)?;
        let ip = |address: &Address| IpConfig {
            interface: None,
            address: address.cidr,
            gateway: address.gateway,
        };
        Ok(AddResult {
            interfaces: Vec::new(),
            ips: plan.addresses.iter().map(ip).collect(),
            routes: plan.routes,
            dns: plan.dns,
        })
    }

    /// Nothing is reserved, so there is nothing to release.
    fn del(_request: &Del<Conf>) -> Result<()> {
        Ok(())
    }

    /// The main plugin checks the addresses of the interface; only gateways are compared here.
    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.version, &request.call.args)?;
        let result = request.prev_result()?;
        if let Some(address) = mismatch(&plan.addresses, &result.ips) {
            bail!(
                "static: Failed to match addr {} on interface {}",
                address.cidr.ip(),
                request.attachment.ifname
            );
        }
        Ok(())
    }

    /// Nothing is reserved, so there is nothing to collect.
    fn gc(_request: &Gc<Conf>) -> Result<()> {
        Ok(())
    }

    /// An ADD needs nothing but its configuration, and the runtime may pass the addresses of a
    /// container with its ADD.
    fn status(_request: &Status<Conf>) -> Result<()> {
        Ok(())
    }
}

/// The first configured address that the result has with another gateway.
fn mismatch<'a>(configured: &'a [Address], result: &[IpConfig]) -> Option<&'a Address> {
    configured.iter().find(|address| {
        let same = |ip: &&IpConfig| ip.address.ip() == address.cidr.ip();
        let found = result.iter().find(same);
        address.gateway.is_some() && found.is_some_and(|found| found.gateway != address.gateway)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_gateway_is_a_mismatch() {
        let address = |cidr: &str, gateway: &str| Address {
            cidr: cidr.parse().unwrap(),
            gateway: gateway.parse().ok(),
        };
        let ip = |cidr: &str, gateway: &str| IpConfig {
            interface: None,
            address: cidr.parse().unwrap(),
            gateway: gateway.parse().ok(),
        };
        let configured = [
            address("10.0.0.2/24", "10.0.0.1"),
            address("fd00::2/64", ""),
        ];
        let same = [ip("10.0.0.2/16", "10.0.0.1"), ip("fd00::2/64", "fd00::1")];
        assert_eq!(mismatch(&configured, &same), None);
        assert_eq!(mismatch(&configured, &[]), None);
        let other = [ip("10.0.0.2/24", "10.0.0.254")];
        assert_eq!(mismatch(&configured, &other), Some(&configured[0]));
    }
}
