//! The environment, the generic keys, CNI_ARGS and prevResult, as every plugin
//! reads them.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::json::Json;
use cni::{Attachment, Call};
use fuzz::Parser;

struct Protocol;

impl Parser for Protocol {
    const NAME: &'static str = "protocol";
    type Conf = Json;

    fn parse(call: &Call, _: &Json, owner: Option<&Attachment>) -> Result<()> {
        call.args(["MAC", "IP", "GATEWAY"])?;
        let document = Json::parse(call.stdin())?;
        let _ = cni::conf::valid_attachments(&document);
        let _ = (call.net.dns.to_dns(), call.has_ipam());
        // What a DEL cannot read, it does without.
        let _ = call.prev_result();
        if let Some(owner) = owner {
            // The kernel's limits, whatever the names.
            assert!(owner.alias().len() < 256, "{owner}");
            assert!(owner.host_veth(0).len() < 16, "{owner}");
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Protocol>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Protocol>)
}
