//! The executable of static.

fn main() -> std::process::ExitCode {
    cni::run::<static_ipam::Static>()
}
