//! host-local: its keys, its part of CNI_ARGS, resolv.conf, and what the
//! allocator gives for them.

#![cfg_attr(fuzzing, no_main)]
#![allow(dead_code, unused_imports)] // the modules are the plugin's, not all of them is parsing

#[path = "../../ipam/host-local/src"]
mod taken_in {
    pub mod allocator;
    pub mod conf;
    pub mod range;
}

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use cni::json::Json;
use cni::{Attachment, Call};
use fuzz::Parser;
use taken_in::{allocator, conf, range};

use allocator::{Store, allocate};

struct HostLocal;

impl Parser for HostLocal {
    const NAME: &'static str = "host-local";
    type Conf = Json;

    fn parse(call: &Call, conf: &Json, owner: Option<&Attachment>) -> Result<()> {
        let (data_dir, told) = (conf::data_dir(conf), conf::can_be_told(conf, call.version));
        let ipam = conf::Ipam::read(conf, call.version, &call.args)?;
        // DEL looks where ADD wrote.
        assert_eq!(ipam.data_dir, data_dir);
        assert!(told.is_ok());
        if owner.is_some() {
            give(&ipam);
        }
        Ok(())
    }
}

/// A few addresses of every set: in it, and each only once.
fn give(ipam: &conf::Ipam) {
    for (number, set) in ipam.sets.iter().enumerate() {
        let mut store = Taken::default();
        for turn in 0..8 {
            let wanted = ipam.requested.get(turn).filter(|ip| set.contains(**ip));
            let Ok(lease) = allocate(set, number, wanted.copied(), &mut store) else {
                continue;
            };
            let ip = lease.address.ip();
            assert!(set.contains(ip) && ip != lease.gateway, "{ip} of {set}");
        }
    }
}

/// Reservations in memory, nobody's in particular.
#[derive(Default)]
struct Taken {
    all: BTreeSet<IpAddr>,
    last: Option<IpAddr>,
}

impl Store for Taken {
    fn container_id(&self) -> &str {
        "c"
    }

    fn held(&self) -> &[IpAddr] {
        &[]
    }

    fn last_reserved(&self, _: usize) -> Option<IpAddr> {
        self.last
    }

    fn is_free(&mut self, ip: IpAddr) -> Result<bool> {
        Ok(!self.all.contains(&ip))
    }

    fn reserve(&mut self, ip: IpAddr, _: Option<usize>) -> Result<bool> {
        self.last = Some(ip);
        Ok(self.all.insert(ip))
    }

    fn reclaim(&mut self) -> Result<bool> {
        Ok(false)
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<HostLocal>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<HostLocal>)
}
