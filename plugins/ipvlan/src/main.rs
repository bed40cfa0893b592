//! The executable of the plugin ipvlan.

fn main() -> std::process::ExitCode {
    cni::run::<ipvlan::Ipvlan>()
}
