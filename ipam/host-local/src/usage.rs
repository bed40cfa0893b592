//! How much of each range set is held: for people. STATUS does not say it, because
//! runtimes take a node out of service whose STATUS fails, although its pods are well.

use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::json::Json;
use cni::version::Version;
use serde::Serialize;

use crate::conf::Conf;
use crate::file::failed;
use crate::network::{Place, names};
use crate::plan::Plan;
use crate::range::RangeSet;

/// How much of one range set is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Its ranges, as in `10.1.0.1-10.1.0.254`.
    pub ranges: String,
    /// Addresses that can be handed out.
    pub total: u128,
    /// Reserved addresses, also of containers that are gone but not yet deleted by the runtime.
    pub used: u128,
    /// Addresses that can still be handed out.
    pub free: u128,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ranges,
            total,
            used,
            free,
        } = self;
        let exhausted = if *free == 0 { ": exhausted" } else { "" };
        let addresses = if *total == 1 { "address" } else { "addresses" };
        write!(
            f,
            "{ranges}: {used} of {total} {addresses} in use, {free} free{exhausted}"
        )
    }
}

/// The usage of each range set of `network`, whose plugin configuration is `document`.
/// Takes no lock: an ADD or DEL that runs meanwhile may be counted or not.
///
/// # Errors
/// When the configuration is wrong, or the reservations cannot be listed.
pub fn usage(document: &Json, network: &str) -> Result<Vec<Usage>> {
    let plan = Plan::new(&cni::conf::load(document)?, Version::LATEST, "")?;
    let reserved = names(&Place::new(&plan.data_dir, network).dir())?;
    let of_set = |set: &RangeSet| {
        let (total, reserved) = (set.total(), reserved.iter());
        let used = reserved.filter(|ip| set.contains(**ip)).count() as u128;
        Usage {
            ranges: set.to_string(),
            total,
            used,
            free: total.saturating_sub(used),
        }
    };
    Ok(plan.sets.iter().map(of_set).collect())
}

/// The reserved addresses of `network`, whose plugin configuration is `document`.
///
/// # Errors
/// When the configuration is wrong, or the reservations cannot be listed.
pub fn reserved(document: &Json, network: &str) -> Result<Vec<IpAddr>> {
    names(&place(document, network)?.dir())
}

/// Removes the reservations of a network that is removed, and their index.
///
/// # Errors
/// When the configuration is wrong, or a directory cannot be removed.
pub fn forget(document: &Json, network: &str) -> Result<()> {
    let place = place(document, network)?;
    for dir in [place.index_dir(), place.dir()] {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if cni::file::is_absent(&error) => {}
            removed => removed.map_err(failed("remove", &dir))?,
        }
    }
    Ok(())
}

fn place(document: &Json, network: &str) -> Result<Place> {
    let conf: Conf = document.decode()?;
    Ok(Place::new(&conf.data_dir(), network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_is_counted_without_its_gateway() {
        let dir = tempfile::tempdir().unwrap();
        let network = dir.path().join("n");
        let document = Json::parse(
            format!(
                r#"{{"ipam": {{"dataDir": "{}", "ranges": [
                    [{{"subnet": "10.1.0.0/24"}},
                     {{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.10", "rangeEnd": "10.2.0.19"}}],
                    [{{"subnet": "fd00::/64"}}]]}}}}"#,
                dir.path().display()
            )
            .as_bytes(),
        )
        .unwrap();
        let counted = || {
            let all = usage(&document, "n").unwrap();
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let nothing = [
            "10.1.0.1-10.1.0.254,10.2.0.10-10.2.0.19: 0 of 263 addresses in use, 263 free",
            "fd00::1-fd00::ffff:ffff:ffff:ffff: 0 of 18446744073709551614 addresses in use, 18446744073709551614 free",
        ];
        assert_eq!(counted(), nothing);
        std::fs::create_dir(&network).unwrap();
        for name in ["10.1.0.2", "10.2.0.10", "10.2.0.20", "fd00::2", "lock"] {
            std::fs::write(network.join(name), "a\r\neth0").unwrap();
        }
        assert!(counted()[0].ends_with("2 of 263 addresses in use, 261 free"));
        assert!(counted()[1].contains(": 1 of "));
    }
}
