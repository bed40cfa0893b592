//! Links the one file with `start.ld`, which has the order of its functions.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/start.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
}
