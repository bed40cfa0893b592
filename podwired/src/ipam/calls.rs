//! What plugins and `podwire ipam` ask.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use pools::{Add, Criteria, Found, Lease, PoolLease, Recipient, Reply, Request, Set, Time};
use serde_json::{Value, json};
use store::{Expected, Transactions, Write};

use super::Role;
use super::supply::Shortage;

/// How long an ADD waits for the store. The agent's own limit for an answer is five seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// Why an ADD gets nothing whose caller has given up.
const TOO_LATE: &str = "the caller waits no longer";

/// Codes of the CNI specification.
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN: u32 = 11;
const NOT_AVAILABLE: u32 = 50;
const INTERNAL: u32 = 999;

impl<S: Transactions + 'static> Role<S> {
    /// Answers a request.
    pub(super) async fn answer(self: &Rc<Self>, request: Value) -> Value {
        let reply = match serde_json::from_value(request) {
            Ok(request) => self.reply(request).await,
            Err(error) => Reply::Error(format!("request: {error}")),
        };
        serde_json::to_value(reply).unwrap_or_else(|error| json!({"error": error.to_string()}))
    }

    /// Releases what an answer has handed out that came too late for its reader.
    pub(super) fn take_back(&self, answer: Value) {
        if let Ok(Reply::Leased { leases, .. }) = serde_json::from_value(answer) {
            let leases = leases.into_iter().map(|it| (it.pool, it.lease));
            if let Err(error) = self.release(&leases.collect::<Vec<_>>()) {
                crate::log::error(format_args!("ipam: {error:#}"));
            }
        }
    }

    async fn reply(self: &Rc<Self>, request: Request) -> Reply {
        match request {
            Request::Add(add) => self.add(&add).await,
            Request::Del(owner) => {
                if let Some(is_over) = self.adding.borrow_mut().get_mut(&owner) {
                    *is_over = true;
                }
                let held = self.node.borrow().held_by(&owner);
                done(self.release(&held))
            }
            Request::Held(owner) => {
                let held = self.node.borrow().held_by(&owner).into_iter();
                Reply::Leases(held.map(pool_lease).collect())
            }
            Request::Network(network) => {
                let (node, mut all) = (self.node.borrow(), Vec::new());
                for (pool, book) in node.books() {
                    let own = book.leases().filter(|it| it.owner.network == network);
                    all.extend(own.map(|it| pool_lease((pool.to_owned(), it.clone()))));
                }
                Reply::Leases(all)
            }
            Request::Release(it) => {
                let mut node = self.node.borrow_mut();
                let released = node.release(&it.pool, it.ip, it.sequence, Time::now());
                done(released.map(drop))
            }
            Request::Ready {} if self.is_fenced_in() => Reply::Done {},
            Request::Ready {} => Reply::Refused {
                code: NOT_AVAILABLE,
                why: self.why_fenced_out(),
            },
            Request::Show {} => Reply::State(self.status()),
            Request::Forget { node } => match self.forget(&node).await {
                Ok(count) => Reply::State(json!({"blocks": count})),
                Err(shortage) => refused(shortage),
            },
        }
    }

    fn release(&self, leases: &[(String, Lease)]) -> Result<()> {
        let mut node = self.node.borrow_mut();
        for (pool, lease) in leases {
            node.release(pool, lease.ip, lease.sequence, Time::now())?;
        }
        drop(node);
        self.note_change();
        Ok(())
    }

    fn why_fenced_out(&self) -> String {
        match self.session.get() {
            Some(_) => "the store has not renewed this node's lease in time".to_owned(),
            None => "this node has no lease in the store".to_owned(),
        }
    }

    async fn add(self: &Rc<Self>, add: &Add) -> Reply {
        if self.adding.borrow().contains_key(&add.owner) {
            let why = format!("another ADD of {} is on its way", add.owner);
            return refused(Shortage::Now(why));
        }
        self.adding.borrow_mut().insert(add.owner.clone(), false);
        let is_late = || add.deadline.is_some_and(|it| Time::now() >= it);
        let mut leases = Vec::new();
        let mut failed = if is_late() {
            Some(Shortage::Now(TOO_LATE.into()))
        } else {
            self.add_all(add, &mut leases).await.err()
        };
        let is_over = self.adding.borrow_mut().remove(&add.owner).unwrap_or(true);
        if is_over && failed.is_none() {
            failed = Some(Shortage::Now("its DEL came before its end".into()));
        }
        if failed.is_none() && is_late() {
            failed = Some(Shortage::Now(TOO_LATE.into()));
        }
        let until = self.fence();
        // What was handed out before may be another node's by now.
        if failed.is_none() && !self.is_fenced_in() {
            failed = Some(Shortage::Now(self.why_fenced_out()));
        }
        if failed.is_none() && !self.are_held(&leases) {
            failed = Some(Shortage::Now(
                "the block of its address was lost meanwhile".into(),
            ));
        }
        let Some(shortage) = failed else {
            let leases = leases.into_iter().map(pool_lease).collect();
            return Reply::Leased { leases, until };
        };
        self.counters.refused.set(self.counters.refused.get() + 1);
        match self.release(&leases) {
            Ok(()) => refused(shortage),
            Err(error) => failure(&error),
        }
    }

    fn are_held(&self, leases: &[(String, Lease)]) -> bool {
        let mut node = self.node.borrow_mut();
        let mut leases = leases.iter();
        leases.all(|(pool, lease)| node.book(pool).block_of(lease.ip).is_some())
    }

    async fn add_all(
        self: &Rc<Self>,
        add: &Add,
        leases: &mut Vec<(String, Lease)>,
    ) -> Result<(), Shortage> {
        let deadline = Time::now().after(PATIENCE);
        let cool_down = Duration::from_secs(add.cool_down);
        self.cool_downs
            .borrow_mut()
            .insert(add.pool.clone(), cool_down);
        for (number, set) in add.sets.iter().enumerate() {
            let held = self.node.borrow().held_by(&add.owner);
            let is_of_set = |lease: &Lease| set.spans.iter().any(|it| it.contains(lease.ip));
            let earlier = held.iter().find(|it| it.0 == add.pool && is_of_set(&it.1));
            if let Some((_, lease)) = earlier.filter(|it| !leases.contains(it)) {
                let (ip, container) = (lease.ip, &add.owner.container);
                return Err(Shortage::Never(format!(
                    "{ip} has been allocated to {container}, duplicate allocation is not allowed"
                )));
            }
            let lease = self.add_one(add, number, set, deadline).await?;
            leases.push((add.pool.clone(), lease));
        }
        Ok(())
    }

    async fn add_one(
        self: &Rc<Self>,
        add: &Add,
        number: usize,
        set: &Set,
        deadline: Time,
    ) -> Result<Lease, Shortage> {
        let is_in = || self.is_fenced_in().then_some(());
        if self.wait_for(deadline, is_in).await.is_none() {
            return Err(Shortage::Now(self.why_fenced_out()));
        }
        let length = self.length(&add.pool, set).await?;
        let name = add
            .name
            .as_ref()
            .map(|name| (add.pool.clone(), number, name.clone()));
        let named = name.as_ref().and_then(|it| {
            let view = self.view.borrow();
            view.names.get(it).map(|it| it.value)
        });
        let named = named.filter(|ip| set.spans.iter().any(|it| it.contains(*ip)));
        let recipient = Recipient {
            owner: add.owner.clone(),
            namespace: add.namespace.clone(),
            name: add.name.clone(),
        };
        if let Some(ip) = set.requested.or(named) {
            let may_be_kept = named == Some(ip);
            let lease = self.add_ip(add, &recipient, (ip, length, may_be_kept), deadline);
            return lease.await;
        }
        let lease = self.add_any(add, &recipient, set, length, deadline).await?;
        self.keep_reserve(&add.pool, set, length);
        if let Some(name) = name
            && let Err(shortage) = self.keep_for(&name, lease.ip, deadline).await
        {
            self.release(&[(add.pool.clone(), lease)]).map_err(broken)?;
            return Err(shortage);
        }
        Ok(lease)
    }

    /// Any address of the set: a free one of this node's blocks, or one that the store has for it.
    async fn add_any(
        &self,
        add: &Add,
        recipient: &Recipient,
        set: &Set,
        length: u8,
        deadline: Time,
    ) -> Result<Lease, Shortage> {
        let lock = self.obtaining(&add.pool);
        let mut one = None;
        let mut shortage = Shortage::Now("other ADDs wait for addresses, too".into());
        loop {
            let kept = self.kept(&add.pool);
            let criteria = Criteria {
                spans: &set.spans,
                kept: &kept,
                cool_down: Duration::from_secs(add.cool_down),
            };
            if !self.is_fenced_in() {
                return Err(Shortage::Now(self.why_fenced_out()));
            }
            let found = {
                let mut node = self.node.borrow_mut();
                node.allocate(&add.pool, &criteria, recipient, Time::now())
            };
            let resting = match found.map_err(broken)? {
                Found::Lease(lease) => return Ok(lease),
                Found::Resting(until) => Some(until),
                Found::Nothing => None,
            };
            let left = deadline.since(Time::now());
            if left.is_zero() {
                return Err(exhausted(set, resting, &shortage));
            }
            if one.is_none() {
                // Another one may get an address for this one, too.
                one = tokio::time::timeout(left, lock.lock()).await.ok();
                continue;
            }
            if let Err(why) = self.obtain(&add.pool, &criteria, length, deadline).await {
                shortage = why;
                if let Shortage::Never(_) = shortage {
                    return Err(shortage);
                }
                return Err(exhausted(set, resting, &shortage));
            }
        }
    }

    fn kept(&self, pool: &str) -> Rc<HashSet<IpAddr>> {
        self.view
            .borrow()
            .kept
            .get(pool)
            .cloned()
            .unwrap_or_default()
    }

    /// This address, and no other.
    async fn add_ip(
        &self,
        add: &Add,
        recipient: &Recipient,
        (ip, length, may_be_kept): (IpAddr, u8, bool),
        deadline: Time,
    ) -> Result<Lease, Shortage> {
        let not_available = |why: String| {
            Shortage::Now(format!("requested IP address {ip} is not available: {why}"))
        };
        if !may_be_kept && self.kept(&add.pool).contains(&ip) {
            return Err(not_available("it is kept for a name".into()));
        }
        if let Some(lease) = self.take_own(add, recipient, ip)? {
            return Ok(lease);
        }
        let obtained = self.obtain_ip(&add.pool, ip, length, deadline).await;
        obtained.map_err(|shortage| match shortage {
            Shortage::Now(why) => not_available(why),
            never => never,
        })?;
        // The watch tells of it, and the book follows.
        let is_free = || {
            let mut node = self.node.borrow_mut();
            node.book(&add.pool).is_free(ip).then_some(())
        };
        let soon = Time::now().after(Duration::from_secs(1));
        self.wait_for(deadline.min(soon), is_free).await;
        let taken = self.take_own(add, recipient, ip)?;
        taken.ok_or_else(|| not_available("another node has it".into()))
    }

    /// Hands out this address if it is free on this node; `None` if it is not this node's.
    fn take_own(
        &self,
        add: &Add,
        recipient: &Recipient,
        ip: IpAddr,
    ) -> Result<Option<Lease>, Shortage> {
        if !self.is_fenced_in() {
            return Err(Shortage::Now(self.why_fenced_out()));
        }
        let mut node = self.node.borrow_mut();
        if let Some(lease) = node.book(&add.pool).lease(ip) {
            let owner = &lease.owner;
            let why = format!("requested IP address {ip} is not available: {owner} has it");
            return Err(Shortage::Now(why));
        }
        if !node.book(&add.pool).is_free(ip) {
            return Ok(None);
        }
        let taken = node.take(&add.pool, ip, recipient, Time::now());
        taken.map(Some).map_err(broken)
    }

    /// Keeps an address for a name, in the store: all nodes know then.
    async fn keep_for(
        &self,
        name: &(String, usize, String),
        ip: IpAddr,
        deadline: Time,
    ) -> Result<(), Shortage> {
        let (key, before) = {
            let view = self.view.borrow();
            let before = view.names.get(name).map(|it| it.revision);
            (view.name_key(&name.0, name.1, &name.2), before)
        };
        let value = json!(ip).to_string();
        let expected = before.map_or(Expected::Absent, Expected::At);
        let put = [Write::Put(&key, value.as_bytes(), None)];
        let done = self.commit(&[(&key, expected)], &put).await?;
        let seen = || {
            let view = self.view.borrow();
            (view.names.get(name)?.value == ip).then_some(())
        };
        if done.is_some() && self.wait_for(deadline, seen).await.is_some() {
            return Ok(());
        }
        let why = format!("another pod is named {}, too", name.2);
        Err(Shortage::Now(why))
    }
}

/// Why there is no address of a set.
fn exhausted(set: &Set, resting: Option<Time>, shortage: &Shortage) -> Shortage {
    let spans: Vec<_> = set.spans.iter().map(ToString::to_string).collect();
    let mut why = format!(
        "no IP addresses available in range set: {}",
        spans.join(",")
    );
    if let Some(until) = resting {
        let seconds = until.since(Time::now()).as_secs_f64();
        why += &format!("; the next of this node's own rests for {seconds:.1} s after its release");
    }
    let (Shortage::Now(more) | Shortage::Never(more)) = shortage;
    Shortage::Now(format!("{why}: {more}"))
}

fn pool_lease((pool, lease): (String, Lease)) -> PoolLease {
    PoolLease { pool, lease }
}

fn refused(shortage: Shortage) -> Reply {
    let (code, why) = match shortage {
        Shortage::Now(why) => (TRY_AGAIN, why),
        Shortage::Never(why) if why.starts_with("blockSize") => (INVALID_CONFIG, why),
        Shortage::Never(why) => (INTERNAL, why),
    };
    Reply::Refused { code, why }
}

fn broken(error: anyhow::Error) -> Shortage {
    Shortage::Never(format!("{error:#}"))
}

fn failure(error: &anyhow::Error) -> Reply {
    let (code, why) = (INTERNAL, format!("{error:#}"));
    Reply::Refused { code, why }
}

fn done(result: Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done {},
        Err(error) => failure(&error),
    }
}
