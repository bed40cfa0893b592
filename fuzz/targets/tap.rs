//! tap: its keys, and the plan that they make.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use tap::{Conf, Plan};

struct Tap;

impl Parser for Tap {
    const NAME: &'static str = "tap";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(conf, mac)?;
        let _ = format!("{plan:?} {:?}", plan.spec("tap0"));
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Tap>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Tap>)
}
