//! How much is measured.

use crate::curves::Plan;
use crate::job::{BRIDGED, Job, MASQUERADED};

/// The repetitions, and the counts of others.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Whether the curves are drawn.
    pub full: bool,
    /// Rounds that are not counted.
    pub warmup: usize,
    /// Rounds of the table.
    pub rounds: usize,
    /// Jobs, pods at once, and rounds.
    pub storms: Vec<(Job, usize, usize)>,
    /// The curves.
    pub curves: Plan,
}

impl Effort {
    /// Some minutes: few points of the curves.
    pub fn quick() -> Self {
        Self {
            full: false,
            warmup: 3,
            rounds: 40,
            storms: storms(
                &[MASQUERADED],
                &[(1, 9), (10, 5), (50, 3), (200, 1), (500, 3)],
            ),
            curves: Plan {
                ports: vec![0, 5_000],
                addresses: vec![0, 50_000],
                pods: vec![0, 250, 1_000],
                rounds: 15,
                pod_rounds: 45,
                connections: 500,
            },
        }
    }

    /// A full run.
    pub fn full() -> Self {
        Self {
            full: true,
            warmup: 5,
            rounds: 101,
            storms: storms(
                &[BRIDGED, MASQUERADED],
                &[(1, 31), (10, 15), (50, 9), (200, 5), (500, 3)],
            ),
            curves: Plan {
                ports: vec![0, 10, 100, 500, 1_000, 2_000, 5_000],
                addresses: vec![0, 100, 1_000, 5_000, 10_000, 20_000, 50_000],
                pods: vec![0, 50, 100, 250, 500, 1_000],
                rounds: 15,
                pod_rounds: 45,
                connections: 1_000,
            },
        }
    }

    /// Shows that the program runs, and nothing about speed.
    pub fn smoke() -> Self {
        Self {
            full: true,
            warmup: 0,
            rounds: 1,
            storms: storms(&[MASQUERADED], &[(2, 1)]),
            curves: Plan {
                ports: vec![0, 2, 4],
                addresses: vec![0, 2, 4],
                pods: vec![0, 1, 2],
                rounds: 1,
                pod_rounds: 1,
                connections: 2,
            },
        }
    }
}

fn storms(jobs: &[Job], sizes: &[(usize, usize)]) -> Vec<(Job, usize, usize)> {
    let of = |job: &Job| {
        sizes
            .iter()
            .map(|(pods, rounds)| (*job, *pods, *rounds))
            .collect()
    };
    jobs.iter().flat_map(|job| -> Vec<_> { of(job) }).collect()
}
