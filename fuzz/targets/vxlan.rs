//! vxlan: its keys, peers among them, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]
#![allow(dead_code, unused_imports)] // the modules are the plugin's, not all of them is parsing

#[path = "../../plugins/vxlan/src"]
mod taken_in {
    pub mod conf;
    pub mod plan;
}

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use taken_in::{conf, plan};

struct Vxlan;

impl Parser for Vxlan {
    const NAME: &'static str = "vxlan";
    type Conf = conf::Conf;

    fn parse(call: &Call, conf: &conf::Conf, _: Option<&Attachment>) -> Result<()> {
        let [mac] = call.args(["MAC"])?;
        let plan = plan::Plan::new(conf, &call.network, call.has_ipam(), mac)?;
        let _ = format!("{plan:?}");
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Vxlan>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Vxlan>)
}
