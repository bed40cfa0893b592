//! What `iptables-save` and `iptables -S` print, of whomever's rules: the
//! changes decided on it are one command a line.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| packet_filter::fuzzing::listed_by_iptables(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(packet_filter::fuzzing::listed_by_iptables)
}
