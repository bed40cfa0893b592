//! The executable of the plugin cluster.

fn main() -> std::process::ExitCode {
    cni::run::<cluster::Cluster>()
}
