//! A short run of the model of cluster addresses; `faults cluster 100000` is a long one.

use faults::cluster::{Model, Shared};

#[test]
fn no_address_has_two_owners_whatever_happens() {
    let model = Model {
        exe: env!("CARGO_BIN_EXE_faults").into(),
        shared: Shared::Etcd,
        operations: 1_000,
        seed: 42,
    };
    let outcome = model.run().expect("the nodes begin");
    eprintln!("{outcome}");
    assert!(outcome.findings.is_empty(), "{outcome}");
    assert!(outcome.added > 300, "{outcome}");
}
