//! What the rules of the packet filters are about.

use anyhow::Result;
use cni::address::{is_single, network_of};
use packet_filter::{Applied, Iptables, Nftables};
use survey::Survey;

/// Those for the networks and pods of a node.
///
/// # Errors
/// The kernel, or a program, refuses a listing.
pub fn read(survey: &Survey) -> Result<Vec<Applied>> {
    let mut all = in_nftables(survey)?;
    all.extend(Iptables::new().inventory()?);
    Ok(all)
}

fn in_nftables(survey: &Survey) -> Result<Vec<Applied>> {
    let Some(nftables) = Nftables::find()? else {
        return Ok(Vec::new());
    };
    let results = survey
        .attachments
        .iter()
        .filter_map(|it| it.result.as_ref());
    let addresses = results.flat_map(|it| &it.ips).map(|it| it.address.0);
    let gateways = survey.node().interfaces.iter().flat_map(|it| &it.addresses);
    let all = addresses.chain(gateways.map(|it| it.address));
    // A rule of one pod alone names it.
    let subnets = all.filter(|it| !is_single(*it));
    let mut subnets: Vec<_> = subnets.map(network_of).collect();
    subnets.sort();
    subnets.dedup();
    nftables.inventory(&subnets)
}
