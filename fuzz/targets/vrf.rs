//! vrf: its keys, and the plan that they make; the name is one that an interface can have.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use vrf::{Conf, Plan};

struct Vrf;

impl Parser for Vrf {
    const NAME: &'static str = "vrf";
    type Conf = Conf;

    fn parse(_: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf)?;
        let name = plan.name.as_str();
        assert!(
            (1..16).contains(&name.len()) && !name.contains(['/', '%']),
            "{name}"
        );
        assert_ne!(plan.table, Some(0));
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Vrf>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Vrf>)
}
