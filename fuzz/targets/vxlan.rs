//! vxlan: its keys, peers among them, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use vxlan::{Conf, Plan};

struct Vxlan;

impl Parser for Vxlan {
    const NAME: &'static str = "vxlan";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(conf, &call.network, call.has_ipam(), mac)?;
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
