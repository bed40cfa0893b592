//! static: its keys and its part of CNI_ARGS.

#![cfg_attr(fuzzing, no_main)]
#![allow(dead_code, unused_imports)] // the module is the plugin's, not all of it is parsing

#[path = "../../ipam/static/src"]
mod taken_in {
    pub mod conf;
}

use anyhow::Result;
use cni::json::Json;
use cni::{Attachment, Call};
use fuzz::Parser;
use taken_in::conf;

struct Static;

impl Parser for Static {
    const NAME: &'static str = "static";
    type Conf = Json;

    fn parse(call: &Call, conf: &Json, _: Option<&Attachment>) -> Result<()> {
        conf::Ipam::read(conf, call.version, &call.args)?;
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Static>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Static>)
}
