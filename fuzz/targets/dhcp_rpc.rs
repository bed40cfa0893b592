//! The stream of the DHCP daemon's socket, which any process with access to it can send; the
//! files in the daemon's directory; the plugin's keys.

#![cfg_attr(fuzzing, no_main)]

use anyhow::Result;
use cni::{AddResult, Attachment, Call};
use dhcp::conf::Conf;
use dhcp::gob::{Decoder, Value};
use dhcp::plan::Plan;
use dhcp::rpc::{self, Arguments, Header};
use dhcp::store::Record;
use fuzz::Parser;

struct Dhcp;

impl Parser for Dhcp {
    const NAME: &'static str = "dhcp";
    type Conf = Conf;

    fn parse(call: &Call, conf: &Conf, _: Option<&Attachment>) -> Result<()> {
        let plan = Plan::new(conf, &call.args)?;
        // DEL asks the daemon that ADD asked.
        assert_eq!(plan.socket, conf.socket());
        plan.identity("pod/net/eth0");
        Ok(())
    }
}

fn rpc(input: &[u8]) {
    stream(input);
    if let Ok(record) = serde_json::from_slice::<Record>(input) {
        let _ = record.owner.client_id();
    }
    if input.starts_with(b"CNI_") {
        fuzz::call::<Dhcp>(input);
    }
}

/// A stream that comes in two pieces has the same values as in one. A result is written as it
/// is read.
fn stream(input: &[u8]) {
    let whole = values(&[input]);
    let (head, tail) = input.split_at(input.len() / 2);
    assert_eq!(format!("{:?}", values(&[head, tail])), format!("{whole:?}"));
    for value in &whole {
        let (header, arguments) = (Header::of(value), Arguments::of(value));
        let call = values(&[&rpc::write_call(&header.method, &arguments)]);
        assert_eq!(Arguments::of(&call[1]), arguments);
        let again = written(&header, rpc::result_of(value));
        assert_eq!(written(&header, again.clone()), again);
    }
}

/// The result that a client reads when the daemon answers `result`.
fn written(header: &Header, result: AddResult) -> AddResult {
    let mut out = Vec::new();
    rpc::describe_answers(&mut out);
    rpc::write_answer(&mut out, header, &Ok(Some(result)));
    rpc::result_of(&values(&[&out])[1])
}

fn values(pieces: &[&[u8]]) -> Vec<Value> {
    let (mut decoder, mut pending, mut values) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in pieces {
        pending.extend(*piece);
        loop {
            match decoder.next(&mut pending) {
                Ok(Some(value)) => values.push(value),
                Ok(None) => break,
                Err(_) => return values,
            }
        }
    }
    values
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| rpc(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(rpc)
}
