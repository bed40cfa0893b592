//! The plugin; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::run::<vxlan::Vxlan>()
}
