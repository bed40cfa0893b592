//! Whether a run agrees with the one before it.

use serde::{Deserialize, Serialize};

use crate::results::{Machine, Named, Results};
use crate::stats::Ratio;

/// The comparison of a run with the one before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Where and when the earlier run was measured.
    pub with: Machine,
    /// How many ratios fell into the spread that the earlier run stated.
    pub agreed: usize,
    /// The ratios that did not: before, and now.
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
        if was.ratio.admits(ratio.median) {
            agreed += 1
        } else {
            others.push((name, was.ratio, ratio))
        }
    }
    Some(Comparison {
        with: before.machine.clone(),
        agreed,
        others,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Verb;
    use crate::results::{Footprint, Row};

    fn run(cpus: usize, ratios: &[(&str, f64)]) -> Results {
        let row = |(job, ratio): &(&str, f64)| Row {
            job: (*job).to_owned(),
            title: (*job).to_owned(),
            verb: Verb::Add,
            times: [].into(),
            refused: None,
            faster: Ratio::of(&[*ratio; 9], &[1.0; 9]),
            than_other: None,
            over_floor: None,
        };
        let text = String::new;
        Results {
            machine: Machine {
                date: text(),
                kernel: text(),
                cpus,
                cpu: text(),
                state: text(),
                podwire: text(),
                go: text(),
                other: None,
                programs: Vec::new(),
            },
            full: false,
            missing: Vec::new(),
            verbs: ratios.iter().map(row).collect(),
            storms: Vec::new(),
            footprint: Footprint {
                sizes: Vec::new(),
                calls: Vec::new(),
            },
            curves: Vec::new(),
            earlier: None,
            additions: Vec::new(),
            comparison: None,
        }
    }

    #[test]
    fn what_left_the_spread_is_named_and_what_is_new_is_not_compared() {
        let before = run(2, &[("a", 10.0), ("b", 10.0)]);
        let now = run(2, &[("a", 11.0), ("b", 12.0), ("c", 1.0)]);
        let seen = compare(&before, &now).unwrap();
        let names: Vec<&str> = seen.others.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!((seen.agreed, names), (1, vec!["b, ADD"]));
    }

    #[test]
    fn another_machine_is_not_compared() {
        assert!(compare(&run(2, &[]), &run(4, &[])).is_none());
    }

    #[test]
    fn figures_survive_their_file() {
        let before = run(2, &[("a", 10.0)]);
        let text = serde_json::to_string(&before).unwrap();
        let read: Results = serde_json::from_str(&text).unwrap();
        let seen = compare(&read, &before).unwrap();
        assert_eq!((seen.agreed, seen.others.len()), (1, 0));
    }
}
