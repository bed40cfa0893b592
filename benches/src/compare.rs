//! Whether a run agrees with the one before it.

use crate::results::{Machine, Named, Results};
use crate::stats::Ratio;

/// A run beside the one before.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Where the earlier one was measured.
    pub with: Machine,
    /// How many ratios fell into the spread that the earlier run stated.
    pub agreed: usize,
    /// Those that did not: before, and now.
    pub others: Vec<(String, Ratio, Ratio)>,
}

/// Compares the ratios that both runs have. `None` when they were not measured on
/// machines alike.
pub fn compare(before: &Results, now: &Results) -> Option<Comparison> {
    if !before.machine.is_like(&now.machine) {
        return None;
    }
    let (mut agreed, mut others) = (0, Vec::new());
    let earlier = before.ratios();
    for Named { name, ratio } in now.ratios() {
        let Some(was) = earlier.iter().find(|earlier| earlier.name == name) else {
            continue;
        };
        match was.ratio.admits(ratio.median) {
            true => agreed += 1,
            false => others.push((name, was.ratio, ratio)),
        }
    }
    Some(Comparison {
        with: before.machine.clone(),
        agreed,
        others,
    })
}
