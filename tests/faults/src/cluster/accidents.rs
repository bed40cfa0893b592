//! What happens to nodes, to members of etcd, and to the network between them.

use std::sync::atomic::Ordering;
use std::thread::{Scope, sleep};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fleet::{LONG, MEMBERS, NODES, SHORT, Shared, Start};
use super::{Numbers, Run};
use crate::strike::{Deed, Strike};

/// What is added to a clock, in seconds: a step of a time server, a wrong time zone, a battery that is
/// empty.
const STEPS: [i64; 6] = [3, -3, 3_600, -3_600, 300_000_000, -300_000_000];

impl Run {
    /// Begins an accident, unless what it would happen to has one already.
    pub(super) fn accident<'scope, 'env>(
        &'env self,
        numbers: &mut Numbers,
        scope: &'scope Scope<'scope, 'env>,
    ) {
        if self.fleet.is_calm.load(Ordering::SeqCst) {
            return;
        }
        let (kind, length) = (numbers.below(13), numbers.below(self.longest()));
        let index = numbers.below(NODES as u64) as usize;
        if self.is_long && numbers.below(30) == 0 {
            return self.hurt(index, scope, move || self.long_accident(index, length));
        }
        match kind {
            0 => self.set_clock(numbers),
            1 => self.stop_member(length, numbers, scope),
            2 => self.part(length, numbers, scope),
            3 | 4 => self.hurt(index, scope, move || self.cut(index, length)),
            5 | 6 => self.hurt(index, scope, move || self.stop(index, length)),
            7 => self.hurt(index, scope, move || self.kill(index, length)),
            8 | 9 => {
                // An agent is ready after some six hundred calls.
                let most = [1_000, 10_000][numbers.below(2) as usize];
                let point = 1 + numbers.below(most) as usize;
                self.hurt(index, scope, move || self.kill_at_call(index, point));
            }
            10 | 11 => {
                let point = 1 + numbers.below(3_000) as usize;
                self.hurt(index, scope, move || {
                    self.pause_at_call(index, point, length)
                });
            }
            _ => self.hurt(index, scope, move || self.start_anew(index, length)),
        }
    }

    /// Has an accident happen to a node, and waits until the node is well again.
    fn hurt<'scope, 'env>(
        &'env self,
        index: usize,
        scope: &'scope Scope<'scope, 'env>,
        accident: impl FnOnce() + Send + 'scope,
    ) {
        let node = &self.fleet.nodes[index];
        if node.is_hurt.swap(true, Ordering::SeqCst) {
            return;
        }
        self.fleet.under_way.fetch_add(1, Ordering::SeqCst);
        scope.spawn(move || {
            accident();
            if let Err(error) = self.fleet.await_ready(node) {
                self.book.find(error.to_string());
            }
            node.is_hurt.store(false, Ordering::SeqCst);
            self.fleet.under_way.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn set_clock(&self, numbers: &mut Numbers) {
        // By a clock that is wrong by years, the certificate of the API server is not valid.
        let nodes = match self.fleet.shared {
            Shared::Etcd => NODES,
            Shared::Kubernetes => 0,
        };
        let machine = match numbers.below((nodes + MEMBERS) as u64) as usize {
            node if node < nodes => node + 1,
            member => member - nodes + 11,
        };
        let step = STEPS[numbers.below(STEPS.len() as u64) as usize];
        self.fleet.note("clock set");
        std::fs::write(self.fleet.clock(machine), step.to_string()).expect("set a clock");
    }

    /// An accident of the store, one at a time: nodes are without it for no longer than that.
    fn hurt_store<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        accident: impl FnOnce() + Send + 'scope,
    ) {
        if self.fleet.store_is_hurt.swap(true, Ordering::SeqCst) {
            return;
        }
        self.fleet.under_way.fetch_add(1, Ordering::SeqCst);
        scope.spawn(move || {
            accident();
            // The members elect a leader.
            sleep(Duration::from_secs(2));
            self.fleet.store_is_hurt.store(false, Ordering::SeqCst);
            self.fleet.under_way.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn stop_member<'scope, 'env>(
        &'env self,
        length: u64,
        numbers: &mut Numbers,
        scope: &'scope Scope<'scope, 'env>,
    ) {
        let member = self.fleet.member(numbers.below(MEMBERS as u64) as usize);
        self.hurt_store(scope, move || {
            self.fleet.note("member of etcd stopped");
            signal(member, Signal::SIGSTOP);
            sleep(Duration::from_millis(length));
            signal(member, Signal::SIGCONT);
        });
    }

    /// The network falls apart into two at random.
    fn part<'scope, 'env>(
        &'env self,
        length: u64,
        numbers: &mut Numbers,
        scope: &'scope Scope<'scope, 'env>,
    ) {
        let mut split = |count: usize| -> [Vec<usize>; 2] {
            let (a, b) = (0..count).partition(|_| numbers.below(2) == 0);
            [a, b]
        };
        let (nodes, members) = (split(NODES), split(MEMBERS));
        let number = 1_000 + numbers.below(20_000);
        self.hurt_store(scope, move || {
            self.fleet.note("network in two parts");
            let [a, b] = &nodes;
            let [c, d] = &members;
            self.fleet.part(number, [a, b], [c, d]);
            sleep(Duration::from_millis(length));
            self.fleet.join(number);
        });
    }

    fn cut(&self, index: usize, length: u64) {
        self.fleet.note("node cut off");
        self.fleet.set_wire(index, "down");
        sleep(Duration::from_millis(length));
        self.fleet.set_wire(index, "up");
    }

    /// One after which the blocks of the node are others'.
    fn long_accident(&self, index: usize, length: u64) {
        self.fleet.is_calm.store(true, Ordering::SeqCst);
        if length.is_multiple_of(2) {
            self.cut_for_long(index, length);
        } else {
            self.stop_for_long(index, length);
        }
        self.fleet.is_calm.store(false, Ordering::SeqCst);
    }

    fn cut_for_long(&self, index: usize, length: u64) {
        self.fleet.note("node cut off for longer than the grace");
        self.fleet.set_wire(index, "down");
        // Up to its fence it goes on.
        sleep(Duration::from_millis(SHORT));
        self.book.end_pods(index, false);
        sleep(Duration::from_millis(LONG + length - SHORT));
        self.fleet.set_wire(index, "up");
    }

    fn stop(&self, index: usize, length: u64) {
        self.stopped(index, length, "agent stopped", || {});
    }

    fn stop_for_long(&self, index: usize, length: u64) {
        let what = "agent stopped for longer than the grace";
        let end_pods = || self.book.end_pods(index, false);
        self.stopped(index, LONG + length, what, end_pods);
    }

    fn stopped(&self, index: usize, length: u64, what: &'static str, meanwhile: impl FnOnce()) {
        let Some(process) = self.fleet.nodes[index].process() else {
            return;
        };
        self.fleet.note(what);
        signal(process, Signal::SIGSTOP);
        meanwhile();
        sleep(Duration::from_millis(length));
        signal(process, Signal::SIGCONT);
    }

    fn kill(&self, index: usize, length: u64) {
        self.fleet.note("agent killed");
        let node = &self.fleet.nodes[index];
        node.kill();
        sleep(Duration::from_millis(length / 2));
        let how = if length.is_multiple_of(2) {
            Start::WithClock
        } else {
            Start::Plain
        };
        self.fleet.start(node, how);
    }

    /// The service manager notes it, as it may be later.
    fn kill_at_call(&self, index: usize, point: usize) {
        self.start_with(index, point, Deed::KillChain);
    }

    fn pause_at_call(&self, index: usize, point: usize, milliseconds: u64) {
        self.fleet.note("agent paused at a system call");
        self.start_with(index, point, Deed::Pause { milliseconds });
    }

    fn start_with(&self, index: usize, point: usize, deed: Deed) {
        let node = &self.fleet.nodes[index];
        node.kill();
        let strike = Strike {
            deed,
            point,
            call: None,
        };
        self.fleet.start(node, Start::Struck(strike));
    }

    fn start_anew(&self, index: usize, length: u64) {
        self.fleet.note("node vanished, and was started anew");
        let node = &self.fleet.nodes[index];
        node.kill();
        self.book.end_pods(index, true);
        sleep(Duration::from_millis(length * 3));
        self.fleet.boot(node);
        self.fleet.start(node, Start::Plain);
    }
}

fn signal(process: u32, signal: Signal) {
    let Ok(process) = process.try_into() else {
        return;
    };
    // It is a child of this process that has not been waited for, unless it was killed meanwhile.
    let _ = kill(Pid::from_raw(process), signal);
}
