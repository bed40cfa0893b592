//! sbr: its keys, the plan that they make, and the tables for the addresses of a result.

#![cfg_attr(fuzzing, no_main)]

use std::collections::HashSet;

use anyhow::Result;
use cni::{Attachment, Call};
use fuzz::Parser;
use sbr::moves::{Pod, check, left, restored, rules_only, tables};
use sbr::{Conf, Plan};

struct Sbr;

impl Parser for Sbr {
    const NAME: &'static str = "sbr";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, owner: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf)?;
        let Some(previous) = call.prev_result()? else {
            return Ok(());
        };
        let ifname = owner.map_or("eth0", |owner| owner.ifname.as_str());
        let sources = plan.sources(&previous, ifname)?;
        let pod = Pod {
            index: 2,
            rules: Vec::new(),
            routes: Vec::new(),
        };
        let chosen = tables(&sources, &pod);
        let numbers: HashSet<u32> = chosen.iter().map(|it| it.number).collect();
        assert_eq!(numbers.len(), sources.len(), "one table for each address");
        for table in &chosen {
            let mut routes = table.routes.iter();
            assert!(routes.all(|it| it.table() == table.number), "{table:?}");
        }
        assert!(left(&plan, &sources, &pod).is_empty());
        assert!(check(&plan, &sources, &pod).is_err());
        let addresses: Vec<_> = sources.iter().map(|it| it.address.ip()).collect();
        assert!(restored(&addresses, plan.table, &pod).rules.is_empty());
        let number = plan.table.unwrap_or(1);
        assert_eq!(rules_only(number, &sources, &[]).len(), sources.len());
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Sbr>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Sbr>)
}
