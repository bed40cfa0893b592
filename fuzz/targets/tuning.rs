//! tuning: its keys, and the plan that they make; no name of a setting leads out of /proc/sys/net.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use tuning::{Conf, Plan};

struct Tuning;

impl Parser for Tuning {
    const NAME: &'static str = "tuning";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, owner: Option<&Attachment>) -> Result<()> {
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(conf, mac)?;
        let ifname = owner.map_or("eth0", |owner| owner.ifname.as_str());
        for sysctl in &plan.sysctls {
            let path = sysctl.path(ifname);
            assert!(path.starts_with("net/"), "{path}");
            assert!(!path.split('/').any(|part| part == ".."), "{path}");
        }
        if let Some(previous) = call.prev_result()? {
            plan.link.in_result(previous, ifname, call.version);
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Tuning>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Tuning>)
}
