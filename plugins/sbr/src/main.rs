//! The executable of the plugin sbr.

fn main() -> std::process::ExitCode {
    cni::run::<sbr::Sbr>()
}
