//! macvlan: its keys, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]
#![allow(dead_code, unused_imports)] // the modules are the plugin's, not all of them is parsing

#[path = "../../plugins/macvlan/src"]
mod taken_in {
    pub mod conf;
    pub mod pattern;
    pub mod plan;
}

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use taken_in::{conf, pattern, plan};

struct Macvlan;

impl Parser for Macvlan {
    const NAME: &'static str = "macvlan";
    type Conf = conf::Conf;

    fn parse(call: &Call, conf: &conf::Conf, _: Option<&Attachment>) -> Result<()> {
        let [mac] = call.args(["MAC"])?;
        let plan = plan::Plan::new(conf, mac)?;
        let _ = format!("{plan:?}");
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Macvlan>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Macvlan>)
}
