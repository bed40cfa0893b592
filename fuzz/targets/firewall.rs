//! firewall: its keys, the plan that they make, and its notes: no value becomes a second command for
//! iptables.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use firewall::{Conf, Plan};
use fuzz::Parser;

struct Firewall;

impl Parser for Firewall {
    const NAME: &'static str = "firewall";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf)?;
        if let Some(previous) = call.prev_result()? {
            packet_filter::fuzzing::firewall_as_text(&plan.wanted(&previous)?);
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Firewall>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Firewall>)
}
