//! The executable of the plugin ptp.

fn main() -> std::process::ExitCode {
    cni::run::<ptp::Ptp>()
}
