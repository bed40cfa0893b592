//! host-device: its keys, and the plan that they make; no address of a device leads out of its bus.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use host_device::plan::Bus;
use host_device::{Conf, Plan};

struct HostDevice;

impl Parser for HostDevice {
    const NAME: &'static str = "host-device";
    type Conf = Conf;

    fn parse(_: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let _ = format!("{:?}", conf.hint());
        let plan = Plan::new(conf)?;
        if let Some(Bus::Pci(id) | Bus::Runtime(id)) = &plan.bus {
            assert!(!id.is_empty() && !id.contains('/') && id != "..", "{id}");
        }
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<HostDevice>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<HostDevice>)
}
