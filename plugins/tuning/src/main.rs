//! The executable of the plugin tuning.

fn main() -> std::process::ExitCode {
    cni::run::<tuning::Tuning>()
}
