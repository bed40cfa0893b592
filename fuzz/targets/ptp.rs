//! ptp: its keys, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use ptp::{Conf, Ends, Plan};

struct Ptp;

impl Parser for Ptp {
    const NAME: &'static str = "ptp";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, owner: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf, call.has_ipam())?;
        if let (Some(owner), Some(previous)) = (owner, call.prev_result_hint()) {
            let _ = format!("{:?}", plan.rules(owner, &previous.ips));
            let _ = format!("{:?}", Ends::new(&previous.ips));
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Ptp>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Ptp>)
}
