//! portmap: its keys, the plan that they make, and the rules that follow: no
//! value of a configuration becomes a second command for iptables or nft.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use portmap::{Conf, Plan};

struct Portmap;

impl Parser for Portmap {
    const NAME: &'static str = "portmap";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, owner: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf)?;
        let _ = plan.admit(&conf.reserved_ports);
        if let (Some(owner), Some(previous)) = (owner, call.prev_result()?) {
            packet_filter::fuzzing::publish_as_text(&plan.host_ports(owner, &previous));
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Portmap>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Portmap>)
}
