//! A file as a store, for tests and for trying things out: one JSON object of keys and their values,
//! which are JSON, too. An editor can change it.
//!
//! Nothing is fast or durable here: the file is read for each call, and looked at twenty times a
//! second for changes. Leases never end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::{
    Changes, Entry, Error, Event, Expected, LeaseId, Listing, Revision, Store, Transactions, Watch,
    Write,
};

const INTERVAL: Duration = Duration::from_millis(50);
const LARGEST: u64 = 64 << 20;

/// A store in one file.
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
    /// What the last list of each prefix returned: a watch begins there.
    listed: Rc<RefCell<BTreeMap<String, Vec<Entry>>>>,
}

type Keys = BTreeMap<String, serde_json::Value>;

impl File {
    /// The store in the file `path`. A file that does not exist has no keys.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            listed: Rc::default(),
        }
    }

    fn read(&self) -> Result<Keys, Error> {
        match cni::file::read(&self.path, LARGEST) {
            Ok((content, _)) => {
                serde_json::from_slice(&content).map_err(|it| failed(&self.path, it))
            }
            Err(error) if cni::file::is_absent(&error) => Ok(Keys::new()),
            Err(error) => Err(failed(&self.path, error)),
        }
    }

    fn entries(&self, prefix: &str) -> Result<Vec<Entry>, Error> {
        let keys = self.read()?.into_iter();
        Ok(keys
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| {
                let value = value.to_string().into_bytes();
                Entry {
                    revision: revision(&value),
                    key,
                    value,
                    lease: Some(LeaseId(1)),
                }
            })
            .collect())
    }

    /// Notes what has been seen, and returns what was seen before.
    fn note(&self, prefix: &str, entries: &[Entry]) -> Vec<Entry> {
        let mut listed = self.listed.borrow_mut();
        let before = listed.insert(prefix.to_owned(), entries.to_vec());
        before.unwrap_or_default()
    }

    /// Changes the file while no other podwire process does, if all keys are as expected.
    fn change(&self, expected: &[(&str, Expected)], writes: &[Write<'_>]) -> Result<bool, Error> {
        let locked = self.path.with_extension("lock");
        let lock = std::fs::File::create(&locked).map_err(|it| failed(&locked, it))?;
        let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive);
        let _lock = lock.map_err(|(_, errno)| failed(&locked, errno))?;
        let mut keys = self.read()?;
        let is_expected = |(key, expected): &(&str, Expected)| {
            let present = keys.get(*key).map(|it| revision(it.to_string().as_bytes()));
            match expected {
                Expected::Absent => present.is_none(),
                Expected::At(revision) => present == Some(*revision),
            }
        };
        if !expected.iter().all(is_expected) {
            return Ok(false);
        }
        for write in writes {
            match *write {
                Write::Put(key, value, _) => keys.insert(key.to_owned(), json(value)?),
                Write::Delete(key) => keys.remove(key),
            };
        }
        let text = serde_json::to_vec_pretty(&keys).map_err(|it| failed(&self.path, it))?;
        let next = self.path.with_extension("new");
        let written = std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &self.path));
        written.map_err(|it| failed(&self.path, it))?;
        Ok(true)
    }
}

impl Transactions for File {
    const IS_ATOMIC: bool = true;

    /// The revision is that of the first value that is put; zero without one.
    async fn commit(
        &self,
        expected: &[(&str, Expected)],
        writes: &[Write<'_>],
    ) -> Result<Option<Revision>, Error> {
        let first = writes.iter().find_map(|it| match it {
            Write::Put(_, value, _) => Some(*value),
            Write::Delete(_) => None,
        });
        let revision = match first {
            Some(value) => revision(json(value)?.to_string().as_bytes()),
            None => 0,
        };
        Ok(self.change(expected, writes)?.then_some(revision))
    }
}

fn json(value: &[u8]) -> Result<serde_json::Value, Error> {
    serde_json::from_slice(value).map_err(|error| Error::Refused(error.to_string()))
}

impl Store for File {
    type Watch = FileWatch;

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let entries = self.entries(prefix)?;
        self.note(prefix, &entries);
        Ok(Listing {
            entries,
            revision: 0,
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let entries = self.entries(key)?;
        Ok(entries.into_iter().find(|it| it.key == key))
    }

    async fn watch(&self, prefix: &str, _from: Revision) -> Result<FileWatch, Error> {
        Ok(FileWatch {
            file: self.clone(),
            prefix: prefix.to_owned(),
        })
    }

    async fn put(
        &self,
        key: &str,
        value: &[u8],
        expected: Expected,
        lease: Option<LeaseId>,
    ) -> Result<Option<Revision>, Error> {
        let put = [Write::Put(key, value, lease)];
        self.commit(&[(key, expected)], &put).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<bool, Error> {
        let expected = Expected::At(expected);
        self.change(&[(key, expected)], &[Write::Delete(key)])
    }

    async fn grant(&self, _ttl: Duration) -> Result<LeaseId, Error> {
        Ok(LeaseId(1))
    }

    async fn renew(&self, _lease: LeaseId) -> Result<Option<Duration>, Error> {
        Ok(Some(Duration::from_secs(86400)))
    }

    fn reconnect(&self) {}

    async fn revoke(&self, _lease: LeaseId) -> Result<(), Error> {
        Ok(())
    }
}

/// A watch of a file.
#[derive(Debug)]
pub struct FileWatch {
    file: File,
    prefix: String,
}

impl Watch for FileWatch {
    async fn next(&mut self) -> Result<Changes, Error> {
        loop {
            let now = self.file.entries(&self.prefix)?;
            let before = self.file.note(&self.prefix, &now);
            let events = difference(&before, now);
            if !events.is_empty() {
                let revision = 0;
                return Ok(Changes { events, revision });
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

fn difference(before: &[Entry], now: Vec<Entry>) -> Vec<Event> {
    let gone = before
        .iter()
        .filter(|old| !now.iter().any(|it| it.key == old.key))
        .map(|old| Event::Delete {
            key: old.key.clone(),
        });
    let mut events: Vec<Event> = gone.collect();
    events.extend(
        now.into_iter()
            .filter(|it| !before.contains(it))
            .map(Event::Put),
    );
    events
}

/// Two values have the same revision only if they are equal.
fn revision(value: &[u8]) -> Revision {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    (hasher.finish() >> 1) as Revision
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn a_key_is_created_once_and_changed_only_as_it_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = File::new(dir.path().join("store.json"));
        run(async {
            let first = store
                .put("/a/x", b"1", Expected::Absent, None)
                .await
                .unwrap();
            assert_eq!(
                store.put("/a/x", b"2", Expected::Absent, None).await,
                Ok(None)
            );
            let second = Expected::At(first.unwrap());
            assert!(
                store
                    .put("/a/x", b"2", second, None)
                    .await
                    .unwrap()
                    .is_some()
            );
            assert_eq!(store.put("/a/x", b"3", second, None).await, Ok(None));
            assert_eq!(store.delete("/a/x", first.unwrap()).await, Ok(false));
            assert_eq!(store.get("/a/x").await.unwrap().unwrap().value, b"2");
        });
    }

    #[test]
    fn a_transaction_changes_all_keys_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = File::new(dir.path().join("store.json"));
        run(async {
            let both = [Write::Put("/x", b"1", None), Write::Put("/y", b"2", None)];
            let absent = [("/x", Expected::Absent), ("/y", Expected::Absent)];
            let first = store.commit(&absent, &both).await.unwrap();
            assert_eq!(store.commit(&absent, &both).await, Ok(None));
            let moved = [Write::Delete("/x"), Write::Put("/z", b"1", None)];
            let expected = [
                ("/x", Expected::At(first.unwrap())),
                ("/z", Expected::Absent),
            ];
            assert!(store.commit(&expected, &moved).await.unwrap().is_some());
            let keys = store.list("/").await.unwrap().entries;
            let keys: Vec<_> = keys.iter().map(|it| it.key.as_str()).collect();
            assert_eq!(keys, ["/y", "/z"]);
        });
    }

    #[test]
    fn a_watch_sees_what_has_changed_since_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let store = File::new(dir.path().join("store.json"));
        run(async {
            store
                .put("/a/x", b"1", Expected::Absent, None)
                .await
                .unwrap();
            let listing = store.list("/a/").await.unwrap();
            store
                .delete("/a/x", listing.entries[0].revision)
                .await
                .unwrap();
            store
                .put("/a/y", b"2", Expected::Absent, None)
                .await
                .unwrap();
            store
                .put("/b/z", b"3", Expected::Absent, None)
                .await
                .unwrap();
            let mut watch = store.watch("/a/", listing.revision + 1).await.unwrap();
            let events = watch.next().await.unwrap().events;
            assert_eq!(events[0], Event::Delete { key: "/a/x".into() });
            assert!(matches!(&events[1], Event::Put(entry) if entry.key == "/a/y"));
            assert_eq!(events.len(), 2);
        });
    }
}
