//! etcd, version 3 of its API, over gRPC.
//!
//! The messages are declared by hand ([`messages`]): the dozen that are needed take less than a
//! compiler for `.proto` files at build time. gRPC, not etcd's JSON gateway, which an operator can
//! switch off and which writes every value as base64.

mod members;
mod messages;

use std::time::Duration;

use tonic::Streaming;

use self::members::{Answered, Members};
use self::messages as api;
use crate::{
    Changes, Entry, Error, Event, Expected, LeaseId, Listing, Revision, Store, Transactions, Watch,
    Write,
};

pub use self::members::Access;

/// How long one request to one member may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A list may be megabytes over a slow line.
const PATIENCE_OF_LISTS: Duration = Duration::from_secs(20);

/// A connection to an etcd cluster. It uses one member as long as that answers, then the next.
#[derive(Debug)]
pub struct Etcd {
    members: Members,
}

impl Etcd {
    /// Checks how etcd is reached. Connects with the first call.
    ///
    /// # Errors
    /// No endpoint, or one that is not `http://HOST:PORT` or `https://HOST:PORT`; files for TLS
    /// that cannot be read or do not belong to an endpoint.
    pub fn new(access: Access) -> anyhow::Result<Self> {
        let members = Members::new(access)?;
        Ok(Self { members })
    }

    /// The member in use.
    pub fn endpoint(&self) -> &str {
        self.members.endpoint()
    }

    async fn range(&self, key: &str, range_end: Vec<u8>) -> Result<api::RangeResponse, Error> {
        let request = api::RangeRequest {
            key: key.into(),
            range_end,
        };
        self.members
            .call("/etcdserverpb.KV/Range", &request, PATIENCE_OF_LISTS)
            .await
    }
}

impl Transactions for Etcd {
    const IS_ATOMIC: bool = true;

    async fn commit(
        &self,
        expected: &[(&str, Expected)],
        writes: &[Write<'_>],
    ) -> Result<Option<Revision>, Error> {
        let compare = expected.iter().map(|(key, expected)| api::Compare {
            result: 0,
            target: api::MOD,
            key: (*key).into(),
            mod_revision: Some(match expected {
                Expected::Absent => 0,
                Expected::At(revision) => *revision,
            }),
        });
        let success = writes.iter().map(|write| api::RequestOp {
            request: Some(operation(write)),
        });
        let request = api::TxnRequest {
            compare: compare.collect(),
            success: success.collect(),
        };
        let done: Answered<api::TxnResponse> = self
            .members
            .ask("/etcdserverpb.KV/Txn", &request, PATIENCE)
            .await?;
        // The keys may differ because the request to the member before has changed them.
        if done.is_repeated && !done.answer.succeeded {
            return Err(Error::Unavailable(
                "a member was lost after a transaction was sent to it".into(),
            ));
        }
        let done = done.answer;
        Ok(done.succeeded.then(|| revision(done.header.as_ref())))
    }
}

impl Store for Etcd {
    type Watch = EtcdWatch;

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let found = self.range(prefix, end_of(prefix)).await?;
        Ok(Listing {
            revision: revision(found.header.as_ref()),
            entries: found.kvs.into_iter().map(entry).collect(),
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let found = self.range(key, Vec::new()).await?;
        Ok(found.kvs.into_iter().next().map(entry))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<EtcdWatch, Error> {
        let request = api::WatchRequest {
            create_request: Some(api::WatchCreateRequest {
                key: prefix.into(),
                range_end: end_of(prefix),
                start_revision: from,
                progress_notify: true,
            }),
        };
        let stream = self
            .members
            .stream("/etcdserverpb.Watch/Watch", request, PATIENCE)
            .await?;
        let seen = from - 1;
        Ok(EtcdWatch { stream, seen })
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
        let done = self
            .commit(&[(key, expected)], &[Write::Delete(key)])
            .await?;
        Ok(done.is_some())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let request = api::LeaseGrantRequest {
            ttl: ttl.as_secs() as i64,
        };
        let granted: api::LeaseGrantResponse = self
            .members
            .call("/etcdserverpb.Lease/LeaseGrant", &request, PATIENCE)
            .await?;
        if !granted.error.is_empty() {
            return Err(Error::Refused(granted.error));
        }
        Ok(LeaseId(granted.id))
    }

    async fn renew(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let request = api::LeaseRequest { id: lease.0 };
        let mut stream: Streaming<api::LeaseKeepAliveResponse> = self
            .members
            .stream("/etcdserverpb.Lease/LeaseKeepAlive", request, PATIENCE)
            .await?;
        let answer = tokio::time::timeout(PATIENCE, stream.message()).await;
        match answer {
            Ok(Ok(Some(answer))) if answer.ttl > 0 => {
                Ok(Some(Duration::from_secs(answer.ttl as u64)))
            }
            Ok(Ok(Some(_))) => Ok(None),
            Ok(Ok(None)) => Err(self.members.lost("the stream has ended")),
            Ok(Err(status)) => Err(self.members.failed(&status)),
            Err(_) => Err(self.members.lost("no answer to a renewal")),
        }
    }

    fn reconnect(&self) {
        self.members.reconnect();
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let request = api::LeaseRequest { id: lease.0 };
        let done: Result<api::LeaseRevokeResponse, _> = self
            .members
            .call("/etcdserverpb.Lease/LeaseRevoke", &request, PATIENCE)
            .await;
        match done {
            Err(Error::Refused(why)) if why.contains("not found") => Ok(()),
            other => other.map(drop),
        }
    }
}

/// A watch of etcd.
#[derive(Debug)]
pub struct EtcdWatch {
    stream: Streaming<api::WatchResponse>,
    seen: Revision,
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Changes, Error> {
        loop {
            let message = self.stream.message().await;
            let message = message.map_err(|status| members::error(&status))?;
            let Some(message) = message else {
                return Err(Error::Unavailable("the watch has ended".into()));
            };
            if message.compact_revision > 0 {
                return Err(Error::Compacted);
            }
            if message.canceled {
                return Err(Error::Unavailable(message.cancel_reason));
            }
            if message.created {
                // The store was restored from a backup: its changes have other numbers now.
                if revision(message.header.as_ref()) < self.seen {
                    return Err(Error::Compacted);
                }
                continue;
            }
            self.seen = self.seen.max(revision(message.header.as_ref()));
            return Ok(Changes {
                events: message.events.into_iter().filter_map(event).collect(),
                revision: self.seen,
            });
        }
    }
}

fn operation(write: &Write) -> api::Operation {
    match *write {
        Write::Put(key, value, lease) => api::Operation::Put(api::PutRequest {
            key: key.into(),
            value: value.to_vec(),
            lease: lease.unwrap_or_default().0,
        }),
        Write::Delete(key) => {
            api::Operation::DeleteRange(api::DeleteRangeRequest { key: key.into() })
        }
    }
}

fn revision(header: Option<&api::Header>) -> Revision {
    header.map_or(0, |it| it.revision)
}

fn entry(kv: api::KeyValue) -> Entry {
    Entry {
        key: key(&kv),
        value: kv.value,
        revision: kv.mod_revision,
        lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
    }
}

/// Keys of other programs may be no text. Such a key is no key of ours in any spelling.
fn key(kv: &api::KeyValue) -> String {
    String::from_utf8_lossy(&kv.key).into_owned()
}

fn event(event: api::Event) -> Option<Event> {
    let kv = event.kv?;
    Some(match event.kind {
        api::DELETE => Event::Delete { key: key(&kv) },
        _ => Event::Put(entry(kv)),
    })
}

/// The first key after all that begin with `prefix`: the prefix with its last byte that is not
/// 255 plus one. A text has no byte 255.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        // All keys.
        None => end.push(0),
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_after_all_keys_with_the_prefix() {
        assert_eq!(end_of("/a/subnets/"), b"/a/subnets0");
        assert_eq!(end_of(""), [0]);
    }
}
