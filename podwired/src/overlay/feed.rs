//! The events of a store, as one stream: changes after a list, whatever happens to connections in
//! between, and whether this node keeps its lease.

use std::rc::Rc;
use std::time::Duration;

use store::{Error, Event, LeaseId, Listing, Revision, Store, Watch};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

/// The pauses between attempts to reach a store that does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Something that has happened.
#[derive(Debug)]
pub enum FeedEvent {
    /// Keys have changed.
    Changes(Vec<Event>),
    /// The keys as they are now. What has changed before is not known.
    Listing(Listing),
    /// The store answers.
    Answers,
    /// The store does not answer, and why.
    Away(Error),
    /// The lease has ended.
    LeaseEnded,
}

/// Pauses that grow.
#[derive(Debug)]
pub struct Pause(Duration);

impl Pause {
    /// Begins with the shortest.
    pub fn new() -> Self {
        Self(PAUSES.0)
    }

    /// Waits. The next pause is twice as long.
    pub async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSES.1);
    }
}

/// Sends all changes of keys with the prefix, from revision `from` on, until it is dropped.
pub async fn follow<S: Store>(
    store: Rc<S>,
    prefix: String,
    from: Revision,
    events: UnboundedSender<FeedEvent>,
) {
    let mut seen = from - 1;
    let mut pause = Pause::new();
    loop {
        let before = seen;
        let error = match watch(&*store, &prefix, &mut seen, &events).await {
            Error::Compacted => match store.list(&prefix).await {
                Ok(listing) => {
                    seen = listing.revision;
                    let _ = events.send(FeedEvent::Listing(listing));
                    continue;
                }
                Err(error) => error,
            },
            error => error,
        };
        let _ = events.send(FeedEvent::Away(error));
        if seen != before {
            pause = Pause::new();
        }
        pause.wait().await;
    }
}

/// Watches until that fails.
async fn watch<S: Store>(
    store: &S,
    prefix: &str,
    seen: &mut Revision,
    events: &UnboundedSender<FeedEvent>,
) -> Error {
    let mut watch = match store.watch(prefix, *seen + 1).await {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    let _ = events.send(FeedEvent::Answers);
    loop {
        match watch.next().await {
            Ok(changes) => {
                *seen = changes.revision;
                let _ = events.send(FeedEvent::Changes(changes.events));
            }
            Err(error) => return error,
        }
    }
}

/// Renews a lease until it has ended, or until it is dropped.
pub async fn keep<S: Store>(
    store: Rc<S>,
    lease: LeaseId,
    ttl: Duration,
    events: UnboundedSender<FeedEvent>,
) {
    let mut wait = ttl / 3;
    loop {
        sleep(wait).await;
        match store.renew(lease).await {
            Ok(Some(left)) => {
                wait = left / 3;
                let _ = events.send(FeedEvent::Answers);
            }
            Ok(None) => {
                let _ = events.send(FeedEvent::LeaseEnded);
                return;
            }
            Err(error) => {
                wait = (ttl / 20).min(PAUSES.1);
                let _ = events.send(FeedEvent::Away(error));
            }
        }
    }
}
