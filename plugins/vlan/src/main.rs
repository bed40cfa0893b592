//! The executable of the plugin vlan.

fn main() -> std::process::ExitCode {
    cni::run::<vlan::Vlan>()
}
