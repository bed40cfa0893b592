//! The node's firewall lets questions in where its policy is to drop.

use std::collections::HashSet;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};

use crate::log;

/// The interfaces whose questions are accepted. A change takes processes, so it is carried out beside
/// the answers, one after the other.
pub struct Firewall {
    bridges: HashSet<String>,
    orders: UnboundedSender<Order>,
    worker: JoinHandle<()>,
}

enum Order {
    Accept(String),
    Forget(String),
}

impl Firewall {
    /// None yet.
    pub fn new() -> Self {
        let (orders, received) = unbounded_channel();
        Self {
            bridges: HashSet::new(),
            orders,
            worker: spawn_local(work(received)),
        }
    }

    /// Has questions from these interfaces accepted, and from others no longer.
    pub fn admit(&mut self, wanted: HashSet<String>) {
        for bridge in self.bridges.difference(&wanted).cloned() {
            let _ = self.orders.send(Order::Forget(bridge));
        }
        for bridge in wanted.difference(&self.bridges).cloned() {
            let _ = self.orders.send(Order::Accept(bridge));
        }
        self.bridges = wanted;
    }

    /// Waits until everything is carried out.
    pub async fn settle(self) {
        drop(self.orders);
        let _ = self.worker.await;
    }
}

async fn work(mut orders: UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        let _ = spawn_blocking(move || order.carry_out()).await;
    }
}

impl Order {
    fn carry_out(self) {
        let (bridge, done) = match self {
            Self::Accept(bridge) => {
                let accepted = packet_filter::accept_questions(&bridge);
                if matches!(accepted, Ok(true)) {
                    log::info(format_args!("iptables accepts questions from {bridge}"));
                }
                (bridge, accepted.map(drop))
            }
            Self::Forget(bridge) => {
                let done = packet_filter::forget_questions(&bridge);
                (bridge, done)
            }
        };
        if let Err(error) = done {
            log::warn(format_args!("questions from {bridge}: {error:#}"));
        }
    }
}
