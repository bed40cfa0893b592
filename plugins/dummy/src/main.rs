//! The executable of the plugin dummy.

fn main() -> std::process::ExitCode {
    cni::run::<dummy::Dummy>()
}
