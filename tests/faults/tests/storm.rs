//! A short storm: `make storm SECONDS=600` is a long one.

use std::time::Duration;

use faults::storm::Storm;

#[test]
fn many_impatient_runtimes_leave_nothing_and_share_nothing() {
    let storm = Storm {
        attachments: 200,
        workers: 16,
        time: Duration::from_secs(10),
        seed: u64::from(std::process::id()),
    };
    let weather = storm.run().expect("the networks work in calm");
    assert!(
        weather.findings.is_empty(),
        "{storm:?}:\n{}",
        weather.findings.join("\n")
    );
    assert!(weather.operations() > 200, "{}", weather.operations());
}
