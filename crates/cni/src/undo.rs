//! The undo stack of an ADD, and the collector of a DEL that does every step.

use anyhow::Result;

use crate::{Error, WithLabel};

type Inverse = Box<dyn FnOnce() -> Result<()>>;

/// What has to be undone if an ADD does not reach its end.
///
/// The code that creates an object for one container pushes its inverse. [`crate::run`] owns
/// the stack: it rolls back on an error, on a panic, and if the result cannot be written. It
/// drops the stack only after the result is printed.
#[derive(Default)]
pub struct Undo {
    stack: Vec<(String, Inverse)>,
}

impl Undo {
    /// An empty stack.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `inverse`, which takes back what was just done. `what` names it in errors:
    /// "delete veth veth1a2b3c4d".
    pub fn push(
        &mut self,
        what: impl Into<String>,
        inverse: impl FnOnce() -> Result<()> + 'static,
    ) {
        self.stack.push((what.into(), Box::new(inverse)));
    }

    /// Runs every inverse, the newest first, and returns one line for each that failed. The
    /// stack is empty afterwards.
    pub fn roll_back(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some((what, inverse)) = self.stack.pop() {
            if let Err(error) = inverse() {
                failures.push(format!("{what}: {}", Error::from_chain(&error)));
            }
        }
        failures
    }

    /// Drops the stack without running it.
    pub fn forget(&mut self) {
        self.stack.clear();
    }
}

/// Runs every step, even if others fail: DEL and GC must not stop at the first failure.
#[derive(Default)]
pub struct BestEffort {
    first: Option<anyhow::Error>,
    rest: Vec<String>,
}

impl BestEffort {
    /// No failures yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs one step. A failure is kept together with `what`, and `None` returned.
    pub fn step<T>(&mut self, what: &str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        match step() {
            Ok(value) => Some(value),
            Err(error) if self.first.is_none() => {
                self.first = Some(error.context(what.to_owned()));
                None
            }
            Err(error) => {
                self.rest
                    .push(format!("{what}: {}", Error::from_chain(&error)));
                None
            }
        }
    }

    /// The first failure, with the others in its details.
    pub fn finish(self) -> Result<()> {
        match self.first {
            None => Ok(()),
            Some(first) if self.rest.is_empty() => Err(first),
            Some(first) => Err(first).details(format!("also failed: {}", self.rest.join("; "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use std::{cell::RefCell, rc::Rc};

    #[test]
    fn the_newest_is_undone_first_and_failures_are_collected() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::new();
        for (name, fails) in [("one", false), ("two", true), ("three", false)] {
            let order = Rc::clone(&order);
            undo.push(name, move || {
                order.borrow_mut().push(name);
                if fails { Err(anyhow!("busy")) } else { Ok(()) }
            });
        }
        assert_eq!(undo.roll_back(), ["two: busy"]);
        assert_eq!(*order.borrow(), ["three", "two", "one"]);
        assert!(undo.roll_back().is_empty());
    }

    #[test]
    fn a_forgotten_stack_is_not_run() {
        let mut undo = Undo::new();
        undo.push("never", || Err(anyhow!("ran")));
        undo.forget();
        assert!(undo.roll_back().is_empty());
    }

    #[test]
    fn best_effort_goes_on_and_reports_every_failure() {
        let mut all = BestEffort::new();
        let mut ran = 0;
        all.step("a", || -> Result<()> { Err(anyhow!("first")) });
        all.step("b", || {
            ran += 1;
            Ok(())
        });
        all.step("c", || -> Result<()> { Err(anyhow!("second")) });
        assert_eq!(ran, 1);
        let text = Error::from_chain(&all.finish().unwrap_err()).to_string();
        assert!(
            text.contains("a: first") && text.contains("c: second"),
            "{text}"
        );
    }
}
