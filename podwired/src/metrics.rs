//! Metrics as Prometheus reads them (exposition format, version 0.0.4).

use std::fmt::{Display, Write};

/// A page of metrics.
#[derive(Clone, Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins a metric: its samples follow. `kind` is `counter`, `gauge` or `histogram`.
    pub fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Adds a sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            let text = text.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(self.0, "{label}=\"{}\"", text.replace('\n', "\\n"));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A metric with one sample.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.sample(name, &[], value);
    }

    /// Adds the metrics of another page.
    pub fn append(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// The page.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// Upper limits of [`Histogram`]'s buckets, in microseconds: from an answer out of memory to a
/// server that does not answer.
const LIMITS: [(u64, &str); 10] = [
    (50, "0.00005"),
    (100, "0.0001"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (5_000, "0.005"),
    (20_000, "0.02"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (5_000_000, "5"),
];

/// How long something takes.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: [u64; LIMITS.len()],
    count: u64,
    micros: u64,
}

impl Histogram {
    /// Counts `number` events that took `micros` each.
    pub fn add(&mut self, micros: u64, number: u64) {
        let bucket = LIMITS.iter().position(|(limit, _)| micros <= *limit);
        if let Some(count) = bucket.and_then(|it| self.counts.get_mut(it)) {
            *count += number;
        }
        self.count += number;
        self.micros += micros * number;
    }

    /// Writes the samples of the metric `name`, with `labels`.
    pub fn write(&self, page: &mut Page, name: &str, labels: &[(&str, &str)]) {
        let (bucket, mut below) = (format!("{name}_bucket"), 0);
        let mut labelled = labels.to_vec();
        for ((_, limit), count) in LIMITS.iter().zip(self.counts) {
            below += count;
            labelled.push(("le", limit));
            page.sample(&bucket, &labelled, below);
            labelled.pop();
        }
        labelled.push(("le", "+Inf"));
        page.sample(&bucket, &labelled, self.count);
        let seconds = self.micros as f64 / 1e6;
        page.sample(&format!("{name}_sum"), labels, seconds);
        page.sample(&format!("{name}_count"), labels, self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_lines_of_the_format() {
        let mut page = Page::default();
        page.begin("queries_total", "counter", "Queries");
        page.sample("queries_total", &[("network", "a\"b")], 5);
        page.single("names", "gauge", "Names", 2);
        let expected = "# HELP queries_total Queries\n# TYPE queries_total counter\n\
                        queries_total{network=\"a\\\"b\"} 5\n\
                        # HELP names Names\n# TYPE names gauge\nnames 2\n";
        assert_eq!(page.text(), expected);
    }

    #[test]
    fn buckets_of_a_histogram_are_cumulative() {
        let (mut page, mut histogram) = (Page::default(), Histogram::default());
        histogram.add(70, 2);
        histogram.add(9_000_000, 1);
        histogram.write(&mut page, "t", &[("by", "x")]);
        let text = page.text();
        for line in [
            "t_bucket{by=\"x\",le=\"0.00005\"} 0\n",
            "t_bucket{by=\"x\",le=\"0.0001\"} 2\n",
            "t_bucket{by=\"x\",le=\"5\"} 2\n",
            "t_bucket{by=\"x\",le=\"+Inf\"} 3\n",
            "t_sum{by=\"x\"} 9.00014\n",
            "t_count{by=\"x\"} 3\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
