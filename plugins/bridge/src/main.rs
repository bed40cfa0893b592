//! The plugin; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::run::<bridge::Bridge>()
}
