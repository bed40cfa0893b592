//! The executable of the plugin portmap.

fn main() -> std::process::ExitCode {
    cni::run::<portmap::Portmap>()
}
