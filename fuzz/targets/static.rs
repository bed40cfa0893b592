//! static: its keys and its part of CNI_ARGS.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use static_ipam::conf::Conf;
use static_ipam::plan::Plan;

struct Static;

impl Parser for Static {
    const NAME: &'static str = "static";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        Plan::new(conf, call.version, &call.args)?;
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Static>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Static>)
}
