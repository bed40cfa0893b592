//! bridge: its keys, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use bridge::{Conf, Plan};
use cni::{Attachment, Call};
use fuzz::Parser;

struct Bridge;

impl Parser for Bridge {
    const NAME: &'static str = "bridge";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(conf, call.has_ipam(), mac)?;
        let vlans = plan.vlans.trunk.iter().flatten().chain(&plan.vlans.access);
        assert!(vlans.copied().all(|vlan| vlan < 4095), "{:?}", plan.vlans);
        let _ = plan.gateway_interface();
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Bridge>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Bridge>)
}
