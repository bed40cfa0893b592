//! ipvlan: its keys, and the plan that they make with the result of a plugin before it.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use ipvlan::{Conf, Plan};

struct Ipvlan;

impl Parser for Ipvlan {
    const NAME: &'static str = "ipvlan";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let mut plan = Plan::new(conf)?;
        plan.chain(call.prev_result()?.as_ref())?;
        let _ = format!("{plan:?}");
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Ipvlan>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Ipvlan>)
}
