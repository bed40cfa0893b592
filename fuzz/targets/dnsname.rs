//! dnsname: its keys, the pod's names, and the record that they make.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{Attachment, Call};
use dnsname::{Conf, Plan};
use fuzz::Parser;
use names::{Entry, Name, Record};

struct Dnsname;

impl Parser for Dnsname {
    const NAME: &'static str = "dnsname";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, owner: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf, &call.network)?;
        let [pod] = call.args(["K8S_POD_NAME"])?;
        let Some(owner) = owner else {
            return Ok(());
        };
        let entry = Entry::of(owner);
        assert_eq!(entry.to_string().parse::<Entry>()?, entry);
        let names = plan.names(pod.as_deref(), owner.container_id.as_str());
        for name in &names {
            assert_eq!(&name.as_str().parse::<Name>()?, name);
        }
        let Some(result) = call.prev_result_hint() else {
            return Ok(());
        };
        let listen = dnsname::plan::gateways(&result);
        let record = plan.record(owner, names, &result, listen.clone(), None);
        let text = serde_json::to_vec(&record)?;
        assert_eq!(serde_json::from_slice::<Record>(&text)?, record);
        let answer = plan.answer(result, &listen);
        assert!(answer.dns.nameservers.len() >= listen.len());
        Ok(())
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::call::<Dnsname>(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(fuzz::call::<Dnsname>)
}
