//! The executable of the plugin macvlan.

fn main() -> std::process::ExitCode {
    cni::run::<macvlan::Macvlan>()
}
