//! bridge: its keys, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]
#![allow(dead_code, unused_imports)] // the modules are the plugin's, not all of them is parsing

#[path = "../../plugins/bridge/src"]
mod taken_in {
    pub mod conf;
    pub mod plan;
}

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use taken_in::{conf, plan};

struct Bridge;

impl Parser for Bridge {
    const NAME: &'static str = "bridge";
    type Conf = conf::Conf;

    fn parse(call: &Call, conf: &conf::Conf, _: Option<&Attachment>) -> Result<()> {
        let [mac] = call.args(["MAC"])?;
        let plan = plan::Plan::new(conf, call.has_ipam(), mac)?;
        let vlans = plan.vlans.trunk.iter().flatten().chain(&plan.vlans.access);
        assert!(vlans.copied().all(|vlan| vlan < 4095), "{:?}", plan.vlans);
        let _ = (plan.dad(), plan.vlan_gateway_name());
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Bridge>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Bridge>)
}
