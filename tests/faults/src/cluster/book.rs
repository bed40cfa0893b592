//! Which pod owns which address: from the moment in which an ADD has succeeded until its DEL begins.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::{Numbers, Outcome, POOLS};

/// What a runtime knows of an attachment.
#[derive(Clone, Debug)]
pub(super) struct Attachment {
    pub pool: usize,
    pub id: String,
    /// Its address; without one its ADD has failed, and a DEL is due.
    ip: Option<String>,
    /// How its ADD came, and when.
    how: String,
}

impl Attachment {
    pub fn new(pool: usize, id: String, ip: Option<&str>, how: String) -> Self {
        let ip = ip.map(str::to_owned);
        Self { pool, id, ip, how }
    }
}

#[derive(Default)]
struct Pages {
    owners: HashMap<(usize, String), String>,
    used: [usize; POOLS.len()],
    /// Attachments by node.
    attachments: Vec<Vec<Attachment>>,
    /// Incremented when the pods of a node end all at once.
    lives: Vec<u64>,
    outcome: Outcome,
}

/// The book.
pub(super) struct Book(Mutex<Pages>);

impl Book {
    pub fn new(nodes: usize) -> Self {
        Self(Mutex::new(Pages {
            attachments: vec![Vec::new(); nodes],
            lives: vec![0; nodes],
            ..Pages::default()
        }))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().expect("a worker panicked")
    }

    /// How many addresses of a pool have an owner.
    pub fn used(&self, pool: usize) -> usize {
        self.pages().used[pool]
    }

    /// How often all pods of a node have ended at once.
    pub fn life(&self, node: usize) -> u64 {
        self.pages().lives[node]
    }

    /// Notes what should not be.
    pub fn find(&self, finding: String) {
        self.pages().outcome.findings.push(finding);
    }

    pub fn findings(&self) -> Vec<String> {
        self.pages().outcome.findings.clone()
    }

    pub fn outcome(&self) -> Outcome {
        self.pages().outcome.clone()
    }

    /// The attachments of a node.
    pub fn attachments(&self, node: usize) -> Vec<Attachment> {
        self.pages().attachments[node].clone()
    }

    /// An ADD has ended that began in that life of the node.
    pub fn added(&self, node: usize, life: u64, name: &str, mut attachment: Attachment) {
        let mut pages = self.pages();
        if pages.lives[node] != life {
            // Its pod is gone already.
            attachment.ip = None;
        }
        match attachment.ip.clone() {
            None => pages.outcome.refused += 1,
            Some(ip) => {
                pages.outcome.added += 1;
                let pool = attachment.pool;
                let holder = format!("{name} {} ({})", attachment.id, attachment.how);
                match pages.owners.insert((pool, ip.clone()), holder.clone()) {
                    None => pages.used[pool] += 1,
                    Some(other) => {
                        let pool = POOLS[pool].name;
                        let finding = format!("{pool} {ip}: {other} and {holder}");
                        pages.outcome.findings.push(finding);
                        pages.outcome.evidence.push(ip);
                    }
                }
            }
        }
        pages.attachments[node].push(attachment);
    }

    /// An attachment whose DEL begins.
    pub fn take(&self, node: usize, numbers: &mut Numbers) -> Option<Attachment> {
        let mut pages = self.pages();
        let count = pages.attachments[node].len();
        if count == 0 {
            return None;
        }
        let at = numbers.below(count as u64) as usize;
        let mut taken = pages.attachments[node].swap_remove(at);
        pages.free(&mut taken);
        Some(taken)
    }

    /// Its DEL has ended.
    pub fn deleted(&self, node: usize, taken: Attachment, is_done: bool) {
        let mut pages = self.pages();
        pages.outcome.deleted += 1;
        if !is_done {
            // The runtime repeats it.
            pages.attachments[node].push(taken);
        }
    }

    /// All pods of a node end. After a reboot the runtime knows nothing of them.
    pub fn end_pods(&self, node: usize, is_reboot: bool) {
        let mut pages = self.pages();
        pages.lives[node] += 1;
        let mut all = std::mem::take(&mut pages.attachments[node]);
        all.iter_mut().for_each(|it| pages.free(it));
        if !is_reboot {
            pages.attachments[node] = all;
        }
    }

    /// All attachments are gone.
    pub fn forget_all(&self) {
        let mut pages = self.pages();
        let nodes = pages.attachments.len();
        pages.owners.clear();
        pages.used = Default::default();
        pages.attachments = vec![Vec::new(); nodes];
    }
}

impl Pages {
    /// An attachment does not own its address any more.
    fn free(&mut self, attachment: &mut Attachment) {
        if let Some(ip) = attachment.ip.take()
            && self.owners.remove(&(attachment.pool, ip)).is_some()
        {
            self.used[attachment.pool] -= 1;
        }
    }
}
