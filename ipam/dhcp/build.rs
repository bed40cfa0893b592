//! Links the daemon position-independent. It lives long and parses packets, so it gets a
//! random address; the plugins, which live for milliseconds, have a fixed one. See
//! `.cargo/config.toml`, whose flags are only in use with static linking.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of_target = |what| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    let is_static = of_target("FEATURE").split(',').any(|it| it == "crt-static");
    // With musl, Rust has the start of such a program for x86-64 alone.
    if is_static && (of_target("ENV") != "musl" || of_target("ARCH") == "x86_64") {
        // The last of contradicting flags wins.
        println!("cargo::rustc-link-arg-bins=-static-pie");
        // Constants are not executable.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,separate-code");
    }
}
