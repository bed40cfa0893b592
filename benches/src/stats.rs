//! Statistics of many measurements.

use serde::{Deserialize, Serialize};

/// How a time is distributed. Milliseconds, unless the place says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Half of the measurements are not above it.
    pub median: f64,
    /// Nine of ten are not above it.
    pub p90: f64,
    /// 99 of a hundred are not above it; of fewer than a hundred, the greatest.
    pub p99: f64,
    /// How many there were.
    pub count: usize,
}

impl Sample {
    /// `None` without measurements.
    pub fn of(values: &[f64]) -> Option<Self> {
        Some(Self {
            median: median(values)?,
            p90: rank(values, 0.9)?,
            p99: rank(values, 0.99)?,
            count: values.len(),
        })
    }
}

/// The ratio of two times: the median of the pairs, and their spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The median of the ratios of the pairs.
    pub median: f64,
    /// The spread: where a repetition on the same machine is expected to fall.
    pub low: f64,
    /// Its other end.
    pub high: f64,
}

/// How much machines drift between two runs, as a part of the ratio. The stated spread is never
/// narrower.
pub const DRIFT: f64 = 0.15;

impl Ratio {
    /// Of measurements that were taken in pairs, one right after the other. The
    /// spread is the middle 80 % of the pairs, and at least the median ± [`DRIFT`].
    pub fn of(above: &[f64], below: &[f64]) -> Option<Self> {
        let pairs: Vec<f64> = above.iter().zip(below).map(|(a, b)| a / b).collect();
        let middle = median(&pairs)?;
        Some(Self {
            median: middle,
            low: rank(&pairs, 0.1)?.min(middle * (1.0 - DRIFT)),
            high: rank(&pairs, 0.9)?.max(middle * (1.0 + DRIFT)),
        })
    }

    /// Whether a repetition fell into the spread.
    pub fn admits(&self, repeated: f64) -> bool {
        (self.low..=self.high).contains(&repeated)
    }
}

/// `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// The value by nearest rank: `part` of the values are not above it.
fn rank(values: &[f64], part: f64) -> Option<f64> {
    let sorted = sorted(values);
    let above = sorted.iter().enumerate().find(|(index, _)| {
        // A count of measurements fits an f64 exactly.
        #[allow(clippy::cast_precision_loss)]
        let reached = (index + 1) as f64 / sorted.len() as f64;
        reached >= part - 1e-9
    });
    above.map(|(_, value)| *value)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(last: u32) -> Vec<f64> {
        (1..=last).rev().map(f64::from).collect()
    }

    #[test]
    fn ranks_are_those_of_a_sorted_list() {
        let sample = Sample::of(&to(100)).unwrap();
        assert_eq!((sample.median, sample.p90, sample.p99), (50.5, 90.0, 99.0));
        let few = Sample::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((few.median, few.p90, few.p99), (2.0, 3.0, 3.0));
        assert_eq!(Sample::of(&[]), None);
    }

    #[test]
    fn a_ratio_is_of_pairs_not_of_medians() {
        let ratio = Ratio::of(&[10.0, 40.0, 90.0], &[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high), (20.0, 10.0, 30.0));
        assert!(ratio.admits(10.0) && !ratio.admits(9.9) && !ratio.admits(30.1));
    }

    #[test]
    fn a_spread_is_never_narrower_than_the_drift() {
        let ratio = Ratio::of(&[4.0; 5], &[2.0; 5]).unwrap();
        assert!(ratio.admits(1.71) && ratio.admits(2.29) && !ratio.admits(2.31));
    }
}
