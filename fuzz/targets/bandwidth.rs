//! bandwidth: its keys, and the numbers that they make.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use bandwidth::{Conf, Plan};
use cni::{Attachment, Call};
use fuzz::Parser;

struct Bandwidth;

impl Parser for Bandwidth {
    const NAME: &'static str = "bandwidth";
    type Conf = Conf;

    fn parse(_: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf)?;
        for limit in [&plan.to_pod, &plan.from_pod].into_iter().flatten() {
            for mtu in [0, 68, 1500, u32::MAX] {
                let numbers = limit.numbers(mtu);
                assert!(numbers.bytes > 0, "{limit:?}");
                let _ = (limit.numbers_of_go(u64::MAX), plan.queue(limit, mtu));
            }
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Bandwidth>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Bandwidth>)
}
