//! dhcp: the IPAM plugin and its daemon.

fn main() -> std::process::ExitCode {
    dhcp::main()
}
