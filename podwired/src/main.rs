//! podwired: the node agent.

fn main() -> std::process::ExitCode {
    podwired::main()
}
