//! host-local: its keys, its part of CNI_ARGS, resolv.conf, and what the
//! allocator gives for them.

#![cfg_attr(fuzzing, no_main)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use host_local::allocator::{Store, allocate};
use host_local::conf::Conf;
use host_local::plan::{self, Plan};

struct HostLocal;

impl Parser for HostLocal {
    const NAME: &'static str = "host-local";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, owner: Option<&Attachment>) -> Result<()> {
        let has_room = plan::check_version(conf, call.version);
        let plan = Plan::new(conf, call.version, &call.args)?;
        // DEL looks where ADD wrote.
        assert_eq!(plan.data_dir, conf.data_dir());
        assert!(has_room.is_ok());
        if owner.is_some() {
            give(&plan);
        }
        Ok(())
    }
}

/// A few addresses of every set: in it, and each only once.
fn give(plan: &Plan) {
    for (number, set) in plan.sets.iter().enumerate() {
        let mut store = Taken::default();
        for turn in 0..8 {
            let wanted = plan.requested.get(turn).filter(|ip| set.contains(**ip));
            let Ok(lease) = allocate(set, number, wanted.copied(), &mut store) else {
                continue;
            };
            let ip = lease.address.ip();
            assert!(set.contains(ip) && ip != lease.gateway, "{ip} of {set}");
        }
    }
}

/// Reservations in memory, without an owner.
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
