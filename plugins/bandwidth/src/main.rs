//! The executable of the plugin bandwidth.

fn main() -> std::process::ExitCode {
    cni::run::<bandwidth::Bandwidth>()
}
