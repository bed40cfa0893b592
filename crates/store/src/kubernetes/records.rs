//! Keys in custom resources of a Kubernetes cluster: a store without an etcd of its own.
//!
//! Of the objects of the API only single ones change atomically, and no lease ends by itself. So this
//! store is not atomic ([`Transactions::IS_ATOMIC`]): a commit is its first change, and nodes end each
//! other's leases ([`Transactions::look_after`]). Why that is enough for addresses is in
//! `docs/cluster-addresses.md`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::access::ApiAccess;
use super::api::{Api, Changed, Content, Events, odd};
use super::lease::{self, Lease, Moment, Observations, Version, Wanted, only_if};
use super::record::{RECORDS, Record, Records as Page, Spec, object_name, token};
use crate::{
    Changes, Entry, Error, Event, Expected, LeaseId, Listing, Member, Revision, Store,
    Transactions, Watch, Write,
};

/// How many objects come in one answer.
const PAGE: usize = 500;
/// A watch that ends sooner is out of order.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// Which keys of a cluster are used, by which node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What all keys begin with, without a slash at the end.
    pub prefix: String,
    /// Where the leases are. The same one for all nodes.
    pub namespace: String,
    /// The name of this node's object in the cluster.
    pub node: String,
    /// This node's key, which lives as long as its lease.
    pub key: String,
    /// This agent: another one may take its lease over only if it has the same.
    pub identity: String,
}

/// The custom resources of a cluster.
#[derive(Debug)]
pub struct Records {
    api: Rc<Api>,
    place: Place,
    lease: RefCell<Option<Held>>,
    observed: RefCell<Observations>,
}

/// This node's lease.
#[derive(Clone, Debug)]
struct Held {
    id: LeaseId,
    version: Version,
    holder: String,
    ttl: Duration,
    renewals: u64,
    /// The revision of this node's key.
    record: Option<Revision>,
}

impl Records {
    /// Checks how the API is reached. Connects with the first call.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read or has something that is not supported; no cluster around.
    pub fn new(access: ApiAccess, place: Place) -> anyhow::Result<Self> {
        Ok(Self {
            api: Rc::new(Api::new(access)?),
            place,
            lease: RefCell::default(),
            observed: RefCell::default(),
        })
    }

    fn name(&self, key: &str) -> String {
        object_name(&self.place.prefix, key)
    }

    fn path(&self, key: &str) -> String {
        format!("{RECORDS}/{}", self.name(key))
    }

    /// The path of the lease of the node with this key.
    fn lease_path(&self, key: &str) -> String {
        format!("{}/{}", lease::path(&self.place.namespace), self.name(key))
    }

    /// Makes one change. Returns its revision, which a deletion does not have.
    async fn write(
        &self,
        write: &Write<'_>,
        expected: Expected,
    ) -> Result<Option<Revision>, Error> {
        match (*write, expected) {
            (Write::Put(key, value, _), _) => {
                let spec = Spec::new(&self.place.prefix, key, value)?;
                let name = self.name(key);
                let done: Changed<Record> = match expected {
                    Expected::Absent => {
                        let object = spec.object(&name, None);
                        let content = Some(Content::json(&object));
                        self.api.change(Method::POST, RECORDS, content).await?
                    }
                    Expected::At(revision) => {
                        let object = spec.object(&name, Some(revision));
                        let content = Some(Content::json(&object));
                        let path = self.path(key);
                        self.api.change(Method::PUT, &path, content).await?
                    }
                };
                match done {
                    Changed::Done(record) => record.revision().map(Some),
                    Changed::Otherwise => Ok(None),
                }
            }
            (Write::Delete(key), Expected::At(revision)) => {
                let version = Version {
                    resource_version: revision.to_string(),
                    ..Version::default()
                };
                let is_done = self.remove(&self.path(key), &version).await?;
                Ok(is_done.then_some(0))
            }
            (Write::Delete(_), Expected::Absent) => Ok(None),
        }
    }

    /// Deletes an object that is as it was seen. Returns whether it was.
    async fn remove(&self, path: &str, seen: &Version) -> Result<bool, Error> {
        let options = only_if(seen);
        let content = Some(Content::json(&options));
        let done: Changed<Value> = self.api.change(Method::DELETE, path, content).await?;
        Ok(matches!(done, Changed::Done(_)))
    }

    /// Whether a key is as expected now. Of this node's own key that is known: it is not asked for.
    async fn is_as_expected(&self, key: &str, expected: Expected) -> Result<bool, Error> {
        if key == self.place.key {
            let lease = self.lease.borrow();
            let own = lease.as_ref().and_then(|it| it.record);
            return Ok(own.map(Expected::At) == Some(expected));
        }
        let found = self.get(key).await?;
        Ok(match expected {
            Expected::Absent => found.is_none(),
            Expected::At(revision) => found.is_some_and(|it| it.revision == revision),
        })
    }

    /// Writes this node's lease. Returns its version; `None` if it was not as expected.
    async fn write_lease(
        &self,
        held: &Held,
        replaced: Option<&Version>,
    ) -> Result<Option<Version>, Error> {
        let name = self.name(&self.place.key);
        let wanted = Wanted {
            name: &name,
            namespace: &self.place.namespace,
            holder: &held.holder,
            ttl: held.ttl,
            renewals: held.renewals,
            key: held.record,
        };
        let object = wanted.object(replaced);
        let content = Some(Content::json(&object));
        let path = self.lease_path(&self.place.key);
        let done: Changed<Lease> = match replaced {
            Some(_) => self.api.change(Method::PUT, &path, content).await?,
            None => {
                let all = lease::path(&self.place.namespace);
                self.api.change(Method::POST, &all, content).await?
            }
        };
        Ok(match done {
            Changed::Done(lease) => Some(lease.metadata.version),
            Changed::Otherwise => None,
        })
    }

    async fn read_lease(&self, key: &str) -> Result<Option<Lease>, Error> {
        self.api.get(&self.lease_path(key)).await
    }

    /// Which lease this node may replace: none; one of this agent's own; one that its holder has not
    /// renewed for as long as it lasts.
    async fn replaceable(&self, ttl: Duration) -> Result<Option<Lease>, Error> {
        let sent = Moment::now();
        let found = self.read_lease(&self.place.key).await?;
        let answered = Moment::now();
        let Some(found) = found else {
            return Ok(None);
        };
        let holder = found.holder().rsplit_once('/').map(|(holder, _)| holder);
        if holder == Some(&self.place.identity) {
            return Ok(Some(found));
        }
        let (node, state) = (&self.place.node, &found.metadata.version.resource_version);
        let idle = {
            let mut observed = self.observed.borrow_mut();
            observed.note(&self.place.key, state, sent, answered)
        };
        if idle >= found.lasts().max(ttl) {
            return Ok(Some(found));
        }
        Err(Error::Refused(format!(
            "another agent is node {node} already, or this machine has just been started again: \
             waiting for the end of its lease"
        )))
    }

    /// The revision of this node's key, if a lease is that of this process, and names it. Of a process before
    /// this one, writes may still be on their way.
    fn own_key(&self, lease: &Lease) -> Option<Revision> {
        let held = self.lease.borrow();
        let is_own = held.as_ref().is_some_and(|it| it.holder == lease.holder());
        lease.key().filter(|_| is_own)
    }

    /// Whether a node is an object of the cluster.
    async fn is_in_cluster(&self, node: &str) -> Result<bool, Error> {
        let found: Option<Value> = self.api.get(&format!("/api/v1/nodes/{node}")).await?;
        Ok(found.is_some())
    }

    /// Ends the lease and the key of a node that is lost. Returns whether the node has given no sign of
    /// life for as long as its lease lasts.
    async fn look_at(&self, member: &Member, ttl: Duration) -> Result<bool, Error> {
        let sent = Moment::now();
        let lease = self.read_lease(&member.key).await?;
        let answered = Moment::now();
        let version = lease.as_ref().map(|it| &it.metadata.version);
        let state = format!(
            "{}/{}",
            version.map_or("", |it| &it.resource_version),
            member.revision
        );
        let idle = {
            let mut observed = self.observed.borrow_mut();
            observed.note(&member.key, &state, sent, answered)
        };
        let lasts = lease.as_ref().map(Lease::lasts).unwrap_or_default();
        if idle < lasts.max(ttl) {
            return Ok(false);
        }
        if self.is_in_cluster(&member.name).await? {
            return Ok(true);
        }
        // The lease first: what is deleted cannot be renewed, so the node's fence has passed for good.
        if let Some(version) = version
            && !self.remove(&self.lease_path(&member.key), version).await?
        {
            return Ok(false);
        }
        self.delete(&member.key, member.revision).await?;
        self.observed.borrow_mut().forget(&member.key);
        Ok(true)
    }
}

impl Store for Records {
    type Watch = RecordWatch;

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let (mut entries, mut next) = (Vec::new(), String::new());
        loop {
            let query = format!("{RECORDS}?limit={PAGE}&continue={next}");
            let mut page: Page = self.api.ask(Method::GET, &query, None).await?;
            for record in page.items {
                let entry = record.entry(&self.place.prefix)?;
                entries.extend(entry.filter(|it| it.key.starts_with(prefix)));
            }
            next = std::mem::take(&mut page.metadata.next);
            if next.is_empty() {
                let revision = super::api::revision(&page.metadata.resource_version)?;
                return Ok(Listing { entries, revision });
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let found: Option<Record> = self.api.get(&self.path(key)).await?;
        found.map_or(Ok(None), |it| it.entry(&self.place.prefix))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<RecordWatch, Error> {
        let seen = from - 1;
        Ok(RecordWatch {
            api: Rc::clone(&self.api),
            prefix: self.place.prefix.clone(),
            keys: prefix.to_owned(),
            events: self.api.watch(RECORDS, seen).await?,
            opened: Instant::now(),
            seen,
        })
    }

    /// A lease is kept in mind with this node's own key alone; other keys stay.
    async fn put(
        &self,
        key: &str,
        value: &[u8],
        expected: Expected,
        lease: Option<LeaseId>,
    ) -> Result<Option<Revision>, Error> {
        let done = self.write(&Write::Put(key, value, lease), expected).await?;
        if let Some(held) = &mut *self.lease.borrow_mut()
            && key == self.place.key
            && lease == Some(held.id)
        {
            held.record = done;
        }
        Ok(done)
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<bool, Error> {
        let expected = Expected::At(expected);
        let done = self.write(&Write::Delete(key), expected).await?;
        Ok(done.is_some())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let replaced = self.replaceable(ttl).await?;
        let token = token();
        let id = i64::from_str_radix(&token[1..], 16).unwrap_or(1);
        let mut held = Held {
            id: LeaseId(id),
            version: Version::default(),
            holder: format!("{}/{token}", self.place.identity),
            ttl,
            renewals: 0,
            record: replaced.as_ref().and_then(|it| self.own_key(it)),
        };
        let replaced = replaced.map(|it| it.metadata.version);
        let written = self.write_lease(&held, replaced.as_ref()).await?;
        held.version = written.ok_or_else(|| {
            Error::Unavailable("this node's lease has changed meanwhile".to_owned())
        })?;
        self.observed.borrow_mut().forget(&self.place.key);
        *self.lease.borrow_mut() = Some(held);
        Ok(LeaseId(id))
    }

    async fn renew(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let held = self.lease.borrow().clone();
        let Some(mut held) = held.filter(|it| it.id == lease) else {
            return Ok(None);
        };
        held.renewals += 1;
        let before = held.version.clone();
        let mut written = self.write_lease(&held, Some(&before)).await?;
        if written.is_none() {
            // A renewal of before whose answer has not come.
            let found = self.read_lease(&self.place.key).await?;
            let Some(found) = found.filter(|it| it.holder() == held.holder) else {
                *self.lease.borrow_mut() = None;
                return Ok(None);
            };
            held.renewals += 1;
            let seen = found.metadata.version;
            written = self.write_lease(&held, Some(&seen)).await?;
        }
        let Some(version) = written.filter(|it| *it != before) else {
            return Err(Error::Unavailable("the lease has changed meanwhile".into()));
        };
        held.version = version;
        let ttl = held.ttl;
        if let Some(own) = &mut *self.lease.borrow_mut()
            && own.id == lease
        {
            own.version = held.version;
            own.renewals = held.renewals;
        }
        Ok(Some(ttl))
    }

    fn reconnect(&self) {
        self.api.reconnect();
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let held = self.lease.borrow_mut().take_if(|it| it.id == lease);
        let Some(held) = held else {
            return Ok(());
        };
        let path = self.lease_path(&self.place.key);
        if self.remove(&path, &held.version).await?
            && let Some(record) = held.record
        {
            self.delete(&self.place.key, record).await?;
        }
        Ok(())
    }
}

impl Transactions for Records {
    const IS_ATOMIC: bool = false;

    async fn commit(
        &self,
        expected: &[(&str, Expected)],
        writes: &[Write<'_>],
    ) -> Result<Option<Revision>, Error> {
        let key = |write: &Write<'_>| match *write {
            Write::Put(key, ..) | Write::Delete(key) => key.to_owned(),
        };
        let written: Vec<String> = writes.iter().map(key).collect();
        for (key, expected) in expected {
            let is_written = written.iter().any(|it| it == key);
            if !is_written && !self.is_as_expected(key, *expected).await? {
                return Ok(None);
            }
        }
        let mut done = None;
        for (write, key) in writes.iter().zip(&written) {
            let condition = expected.iter().find(|(it, _)| it == key);
            let Some((_, condition)) = condition else {
                let why = format!("key {key}: a change without a condition");
                return Err(Error::Refused(why));
            };
            let changed = self.write(write, *condition).await;
            match done {
                None => match changed? {
                    None => return Ok(None),
                    revision => done = revision,
                },
                // It is done. What else belongs to it may follow later.
                Some(_) => drop(changed),
            }
        }
        Ok(done)
    }

    fn continued(&self, lease: LeaseId) -> Option<Revision> {
        let held = self.lease.borrow();
        held.as_ref().filter(|it| it.id == lease)?.record
    }

    async fn look_after(&self, members: &[Member], ttl: Duration) -> Result<(), Error> {
        for member in members {
            // The one behind a node that lives is looked at by that node.
            if !self.look_at(member, ttl).await? {
                break;
            }
        }
        Ok(())
    }
}

/// A watch of the custom resources.
#[derive(Debug)]
pub struct RecordWatch {
    api: Rc<Api>,
    prefix: String,
    /// What the wanted keys begin with.
    keys: String,
    events: Events,
    opened: Instant,
    seen: Revision,
}

impl Watch for RecordWatch {
    /// A watch that the server ends goes on where it was, so that there is no gap.
    async fn next(&mut self) -> Result<Changes, Error> {
        let events = loop {
            let ended = match self.events.next().await {
                Ok(Some(events)) => break events,
                Ok(None) => Error::Unavailable("the watch has ended".into()),
                Err(Error::Compacted) => return Err(Error::Compacted),
                Err(error) => error,
            };
            if self.opened.elapsed() < SHORTEST_WATCH {
                sleep(SHORTEST_WATCH).await;
                return Err(ended);
            }
            self.events = self.api.watch(RECORDS, self.seen).await?;
            self.opened = Instant::now();
        };
        let mut changes = Vec::new();
        for event in events {
            let record: Record = serde_json::from_value(event.object).map_err(odd)?;
            self.seen = record.revision()?;
            let is_deleted = event.kind == "DELETED";
            let entry = record.entry(&self.prefix)?;
            let wanted = entry.filter(|it| it.key.starts_with(&self.keys));
            changes.extend(wanted.map(|entry| {
                if is_deleted {
                    Event::Delete { key: entry.key }
                } else {
                    Event::Put(entry)
                }
            }));
        }
        Ok(Changes {
            events: changes,
            revision: self.seen,
        })
    }
}
