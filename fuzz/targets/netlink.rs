//! What rtnetlink answers: links, addresses, routes, neighbours.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| netlink::fuzzing::answered(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(netlink::fuzzing::answered)
}
