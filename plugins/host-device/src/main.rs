//! The executable of the plugin host-device.

fn main() -> std::process::ExitCode {
    cni::run::<host_device::HostDevice>()
}
