//! What nfnetlink answers to everything that we ask: tables, rules, elements,
//! connections, errors.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| packet_filter::fuzzing::answered_by_nfnetlink(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(packet_filter::fuzzing::answered_by_nfnetlink)
}
