//! The undo stack of an ADD, and the collector of a DEL that does every step.

use anyhow::Result;

use crate::{Error, WithLabel};

type Inverse = Box<dyn FnOnce() -> Result<()>>;

/// What has to be undone if an ADD does not reach its end.
///
/// Whoever creates something private pushes its inverse. The dispatcher owns
/// the stack: it rolls back on an error, on a panic, and when the result could
/// not be written; it forgets the stack only after the result is out.
#[derive(Default)]
pub struct Undo {
    stack: Vec<(String, Inverse)>,
}

impl Undo {
    /// An empty stack.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers that `inverse` takes back what was just done. `what` names the
    /// inverse for the reader of an error: "delete veth veth1a2b3c4d".
    pub fn push(
        &mut self,
        what: impl Into<String>,
        inverse: impl FnOnce() -> Result<()> + 'static,
    ) {
        self.stack.push((what.into(), Box::new(inverse)));
    }

    /// Runs every inverse, the newest first, and returns what could not be
    /// undone, one line each. The stack is empty afterwards.
    pub fn roll_back(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some((what, inverse)) = self.stack.pop() {
            if let Err(error) = inverse() {
                failures.push(format!("{what}: {}", Error::from_chain(&error)));
            }
        }
        failures
    }

    /// The work is done and reported: nothing will be undone any more.
    pub fn forget(&mut self) {
        self.stack.clear();
    }
}

/// Does every step whatever happens to the others: DEL and GC must not stop at
/// the first thing that resists.
#[derive(Default)]
pub struct BestEffort {
    first: Option<anyhow::Error>,
    rest: Vec<String>,
}

impl BestEffort {
    /// Nothing has failed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs one step; a failure is kept with `what` was being done, and `None` returned.
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
    fn what_was_forgotten_is_not_undone() {
        let mut undo = Undo::new();
        undo.push("never", || Err(anyhow!("ran")));
        undo.forget();
        assert!(undo.roll_back().is_empty());
    }

    #[test]
    fn best_effort_goes_on_and_tells_everything() {
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
