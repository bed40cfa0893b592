//! vlan: its keys, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use vlan::{Conf, Plan};

struct Vlan;

impl Parser for Vlan {
    const NAME: &'static str = "vlan";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf, call.has_ipam())?;
        assert!(plan.id < 4095, "{plan:?}");
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Vlan>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Vlan>)
}
