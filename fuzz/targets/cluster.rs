//! cluster: its keys and its part of CNI_ARGS.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cluster::{Conf, Plan};
use cni::{Attachment, Call};
use fuzz::Parser;

struct Cluster;

impl Parser for Cluster {
    const NAME: &'static str = "cluster";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        Plan::new(conf, &call.network, call.version, &call.args)?.name(call)?;
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Cluster>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Cluster>)
}
