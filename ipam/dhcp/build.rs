//! Links the daemon position-independent. It lives long and parses packets, so it gets a
//! random address; the plugins, which live for milliseconds, have a fixed one. See
//! `.cargo/config.toml`, whose flags are only in use with static linking.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        // The last of `-no-pie` and `-static-pie` wins.
        println!("cargo::rustc-link-arg-bins=-static-pie");
    }
}
