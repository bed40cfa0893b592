//! Links the one file at a fixed address with musl, too: relocations of all programs together
//! would cost each start 45 page faults, a quarter of its time. The agent and the DHCP daemon
//! as programs of their own stay position-independent.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let musl = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl");
    if musl && features.split(',').any(|feature| feature == "crt-static") {
        // musl's start of a position-independent program reads the list _DYNAMIC, to apply
        // relocations. There are none: __environ is empty at that time, and ends the list.
        for arg in [
            "-no-pie",
            "-Wl,-static",
            "-Wl,--no-dynamic-linker",
            "-Wl,--defsym=_DYNAMIC=__environ",
        ] {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
    }
}
