//! dummy: whether it is called with addresses.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use dummy::Conf;
use fuzz::Parser;

struct Dummy;

impl Parser for Dummy {
    const NAME: &'static str = "dummy";
    type Conf = Conf;

    fn parse(call: &Call, _: &Conf, _: Option<&Attachment>) -> Result<()> {
        Ok(dummy::require_ipam(call.has_ipam())?)
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Dummy>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Dummy>)
}
