//! The executable of the plugin vrf.

fn main() -> std::process::ExitCode {
    cni::run::<vrf::Vrf>()
}
