//! The executable of the plugin tap.

fn main() -> std::process::ExitCode {
    cni::run::<tap::Tap>()
}
