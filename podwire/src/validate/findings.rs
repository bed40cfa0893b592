//! Findings: faults and hints, each with its place.

use overlay::Network;
use serde::Serialize;

/// The severity of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A runtime or a plugin will refuse it.
    Error,
    /// It is legal, but probably a mistake.
    Warning,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Error or warning.
    pub severity: Severity,
    /// The keys that lead to it, `plugins[0].ipam.subnet`; empty for the document.
    pub path: String,
    /// Where a document stops being JSON, from 1.
    #[serde(flatten)]
    pub position: Option<Position>,
    /// What is wrong.
    pub reason: String,
}

/// A place in a text, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The byte in the line.
    pub column: usize,
}

/// A remark that is no fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hint {
    /// As of a [`Finding`].
    pub path: String,
    /// The remark.
    pub text: String,
}

/// All faults of a file, and hints.
#[derive(Debug, Default)]
pub struct Findings {
    faults: Vec<Finding>,
    hints: Vec<Hint>,
    /// The VXLAN networks of the file with their places: those of a directory must agree.
    overlays: Vec<(String, Network)>,
}

impl Findings {
    /// Keeps a VXLAN network that has no fault itself.
    pub fn keep_overlay(&mut self, place: &str, network: Network) {
        self.overlays.push((place.to_owned(), network));
    }

    /// The VXLAN networks of the file.
    pub fn overlays(&self) -> &[(String, Network)] {
        &self.overlays
    }

    /// Adds an error.
    pub fn error(&mut self, path: &str, reason: impl Into<String>) {
        self.add(Severity::Error, path, reason.into());
    }

    /// Adds a warning.
    pub fn warning(&mut self, path: &str, reason: impl Into<String>) {
        self.add(Severity::Warning, path, reason.into());
    }

    /// Adds a hint. It is not counted, and does not change the exit status.
    pub fn hint(&mut self, path: &str, text: impl Into<String>) {
        self.hints.push(Hint {
            path: path.to_owned(),
            text: text.into(),
        });
    }

    /// All hints.
    pub fn hints(&self) -> &[Hint] {
        &self.hints
    }

    /// Adds a parser's error; its text contains the position.
    pub fn syntax(&mut self, error: &serde_json::Error) {
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        self.faults.push(Finding {
            severity: Severity::Error,
            path: String::new(),
            position: Some(Position {
                line: error.line(),
                column: error.column(),
            }),
            reason: format!("not JSON: {reason}"),
        });
    }

    /// All faults.
    pub fn all(&self) -> &[Finding] {
        &self.faults
    }

    /// Whether there is an error at a place or below it.
    pub fn has_error_at(&self, place: &str) -> bool {
        let here = |finding: &&Finding| finding.path.starts_with(place);
        let mut errors = self.faults.iter().filter(here);
        errors.any(|finding| finding.severity == Severity::Error)
    }

    /// How many there are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        let of_that = |finding: &&Finding| finding.severity == severity;
        self.faults.iter().filter(of_that).count()
    }

    fn add(&mut self, severity: Severity, path: &str, reason: String) {
        let finding = Finding {
            severity,
            path: path.to_owned(),
            position: None,
            reason,
        };
        // Two checks may meet the same fault.
        if !self.faults.contains(&finding) {
            self.faults.push(finding);
        }
    }
}
