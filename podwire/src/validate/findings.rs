//! What was found, and where.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A runtime or a plugin will refuse it.
    Error,
    /// It works, but hardly as meant.
    Warning,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
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

/// All faults of a file.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds an error.
    pub fn error(&mut self, path: &str, reason: impl Into<String>) {
        self.add(Severity::Error, path, reason.into());
    }

    /// Adds a warning.
    pub fn warning(&mut self, path: &str, reason: impl Into<String>) {
        self.add(Severity::Warning, path, reason.into());
    }

    /// Adds what a parser says; it puts the position into its text.
    pub fn syntax(&mut self, error: &serde_json::Error) {
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        self.0.push(Finding {
            severity: Severity::Error,
            path: String::new(),
            position: Some(Position {
                line: error.line(),
                column: error.column(),
            }),
            reason: format!("not JSON: {reason}"),
        });
    }

    /// All of them.
    pub fn all(&self) -> &[Finding] {
        &self.0
    }

    /// How many there are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        let of_that = |finding: &&Finding| finding.severity == severity;
        self.0.iter().filter(of_that).count()
    }

    fn add(&mut self, severity: Severity, path: &str, reason: String) {
        let finding = Finding {
            severity,
            path: path.to_owned(),
            position: None,
            reason,
        };
        // Two checks may meet the same fault.
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }
}
