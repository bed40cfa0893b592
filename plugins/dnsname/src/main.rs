//! The executable of the plugin dnsname.

fn main() -> std::process::ExitCode {
    cni::run::<dnsname::Dnsname>()
}
