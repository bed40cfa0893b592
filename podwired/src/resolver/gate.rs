//! How much is done at once: in all, and for one client, so that none takes the share of all others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Counts what is being done.
#[derive(Debug)]
pub struct Gate {
    in_all: usize,
    for_one: usize,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    number: usize,
    clients: HashMap<IpAddr, usize>,
}

/// A task in progress, until it is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Rc<Gate>,
    client: IpAddr,
}

impl Gate {
    /// With these limits.
    pub fn new(in_all: usize, for_one: usize) -> Rc<Self> {
        Rc::new(Self {
            in_all,
            for_one,
            state: RefCell::default(),
        })
    }

    /// `None` where there is too much already.
    pub fn enter(self: &Rc<Self>, client: IpAddr) -> Option<Pass> {
        let mut state = self.state.borrow_mut();
        if state.number >= self.in_all {
            return None;
        }
        let own = state.clients.entry(client).or_default();
        if *own >= self.for_one {
            return None;
        }
        *own += 1;
        state.number += 1;
        let gate = Rc::clone(self);
        Some(Pass { gate, client })
    }

    /// How much is being done.
    pub fn number(&self) -> usize {
        self.state.borrow().number
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.state.borrow_mut();
        state.number -= 1;
        let own = state.clients.get_mut(&self.client);
        let is_last = own.is_some_and(|it| {
            *it -= 1;
            *it == 0
        });
        if is_last {
            state.clients.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_share() {
        let gate = Gate::new(3, 2);
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|it| it.parse().unwrap());
        let passes = [gate.enter(one).unwrap(), gate.enter(one).unwrap()];
        assert!(gate.enter(one).is_none());
        let last = gate.enter(other).unwrap();
        assert!(gate.enter(other).is_none());
        drop(passes);
        assert_eq!(gate.number(), 1);
        assert!(gate.enter(one).is_some());
        drop(last);
        assert!(gate.state.borrow().clients.is_empty());
    }
}
