//! Two clients of one store of custom resources, in the orders that decide which node has a block: a take-over that
//! comes late, a node that comes back, a renewal that comes after the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use store::{
    ApiAccess, Event, Expected, LeaseId, Listing, Member, Place, Records, Revision, Store,
    Transactions, Watch, Write,
};

use crate::addresses::{Addresses, name};

const TTL: Duration = Duration::from_secs(1);
/// More than come in one answer.
const KEYS: usize = 510;
const BLOCK: &str = "/p/blocks/web/10.0.0.0-26";

/// Runs a story with the kubeconfig of the account, beside the API server.
fn tell<T: Send + 'static, F: Future<Output = T>>(
    it: &Addresses,
    story: impl FnOnce(PathBuf) -> F + Send + 'static,
) -> T {
    let kubeconfig = it.api.kubeconfig();
    it.api.cluster.sandbox.inside(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(story(kubeconfig))
    })
}

fn key(node: usize) -> String {
    format!("/p/nodes/{}", name(node))
}

/// The store as the agent `identity` of a node uses it.
fn client(kubeconfig: &Path, node: usize, identity: &str) -> Records {
    let access = ApiAccess {
        kubeconfig: Some(kubeconfig.to_owned()),
    };
    let place = Place {
        prefix: "/p".into(),
        namespace: "podwire".into(),
        node: name(node),
        key: key(node),
        identity: identity.into(),
    };
    Records::new(access, place).expect("a store")
}

/// Begins a session. Returns its lease and the revision of its key.
async fn begin(store: &Records, node: usize) -> (LeaseId, Revision) {
    let lease = store.grant(TTL).await.expect("a lease");
    let before = store.get(&key(node)).await.expect("an answer");
    let expected = before.map_or(Expected::Absent, |it| Expected::At(it.revision));
    let put = store.put(&key(node), b"{}", expected, Some(lease)).await;
    (lease, put.expect("an answer").expect("the key"))
}

async fn put(store: &Records, key: &str, value: &str, expected: Expected) -> Option<Revision> {
    let done = store.put(key, value.as_bytes(), expected, None).await;
    done.expect("an answer")
}

/// Has a node look at another one until its key is gone, or for a while.
async fn look(store: &Records, node: usize, revision: Revision, limit: Duration) -> bool {
    let member = Member {
        name: name(node),
        key: key(node),
        revision,
    };
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let looked = store.look_after(std::slice::from_ref(&member), TTL).await;
        looked.expect("an answer");
        if store.get(&key(node)).await.expect("an answer").is_none() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

#[test]
fn a_take_over_that_comes_late_finds_another_revision() {
    let it = Addresses::new(2);
    let (lease, revision, seen) = tell(&it, async |kubeconfig| {
        let (one, two) = (client(&kubeconfig, 1, "a/b"), client(&kubeconfig, 2, "c/d"));
        let (lease, revision) = begin(&one, 1).await;
        begin(&two, 2).await;
        let seen = put(&one, BLOCK, "1", Expected::Absent).await;
        // The cluster has the node: it keeps its key, however long it is silent.
        assert!(!look(&two, 1, revision, TTL * 4).await);
        (lease, revision, seen.expect("the block"))
    });
    it.api.kubectl(&["delete", "node", "node1"]);
    tell(&it, async move |kubeconfig| {
        let (one, two) = (client(&kubeconfig, 1, "a/b"), client(&kubeconfig, 2, "c/d"));
        // A node that lives keeps it, too.
        let (living, own) = begin(&one, 1).await;
        assert!(own > revision);
        let renewing = async {
            loop {
                assert!(one.renew(living).await.expect("an answer").is_some());
                tokio::time::sleep(TTL / 4).await;
            }
        };
        tokio::select! {
            () = renewing => {}
            gone = look(&two, 1, own, TTL * 4) => assert!(!gone),
        }
        assert!(look(&two, 1, own, Duration::from_secs(60)).await);
        // What has ended is not renewed, and not made anew by a renewal.
        assert_eq!(one.renew(living).await, Ok(None));
        assert_eq!(one.renew(lease).await, Ok(None));

        // The node comes back, and changes its blocks before it uses them.
        let returned = one.grant(TTL).await.expect("a lease");
        assert_eq!(one.continued(returned), None);
        let (_, back) = begin(&one, 1).await;
        let touched = put(&one, BLOCK, "1", Expected::At(seen)).await;
        let touched = touched.expect("its own block");
        assert!(touched > back, "the same value is a change");
        let absent = key(1);
        let late = async |at: Revision| {
            let expected = [(BLOCK, Expected::At(at)), (&absent, Expected::Absent)];
            let write = [Write::Put(BLOCK, b"2", None)];
            two.commit(&expected, &write).await
        };
        assert_eq!(late(seen).await, Ok(None));
        assert_eq!(late(touched).await, Ok(None), "its node is back");
        // Even one that was decided before: it looked at the node's key, then was stopped.
        assert_eq!(put(&two, BLOCK, "2", Expected::At(seen)).await, None);

        // The other way round, the node loses the block.
        assert!(look(&two, 1, back, Duration::from_secs(60)).await);
        assert!(late(touched).await.expect("an answer").is_some());
        begin(&one, 1).await;
        assert_eq!(put(&one, BLOCK, "1", Expected::At(touched)).await, None);
    });
    let leases = it
        .api
        .kubectl(&["get", "leases", "-n", "podwire", "-o", "name"]);
    assert_eq!(leases.lines().count(), 2, "{leases}");
}

#[test]
fn one_agent_at_a_time_has_the_lease_of_a_node() {
    let it = Addresses::new(1);
    tell(&it, async |kubeconfig| {
        let one = client(&kubeconfig, 1, "a/b");
        let (lease, own) = begin(&one, 1).await;
        assert_eq!(one.renew(lease).await, Ok(Some(TTL)));
        // Its key goes on with its next lease.
        let lease = one.grant(TTL).await.expect("a lease");
        assert_eq!(one.continued(lease), Some(own));
        // The same agent, started again: the one before has ended, but its writes may be on their way.
        let again = client(&kubeconfig, 1, "a/b");
        let next = again.grant(TTL).await.expect("a lease");
        assert_eq!(again.continued(next), None);
        let (second, _) = begin(&again, 1).await;
        assert_eq!(one.renew(lease).await, Ok(None));
        assert_eq!(again.renew(second).await, Ok(Some(TTL)));
        // Another one waits until the lease is not renewed for as long as it lasts.
        let other = client(&kubeconfig, 1, "x/y");
        let why = other.grant(TTL).await.expect_err("a lease").to_string();
        assert!(why.contains("another agent is node node1 already"), "{why}");
        let end = Instant::now() + TTL * 3;
        while Instant::now() < end {
            assert!(again.renew(second).await.expect("an answer").is_some());
            assert!(other.grant(TTL).await.is_err());
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let third = loop {
            match other.grant(TTL).await {
                Ok(lease) => break lease,
                Err(_) => assert!(Instant::now() < deadline, "the lease never ends"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(other.continued(third), None);
        assert_eq!(again.renew(second).await, Ok(None));
    });
}

#[test]
fn keys_are_listed_and_watched_in_one_order() {
    let it = Addresses::new(1);
    tell(&it, async |kubeconfig| {
        let store = client(&kubeconfig, 1, "a/b");
        let empty: Listing = store.list("/p/").await.expect("an answer");
        assert_eq!(empty.entries, []);
        let mut watch = store
            .watch("/p/", empty.revision + 1)
            .await
            .expect("a watch");
        for n in 0..KEYS {
            let name = format!("/p/names/web/0/Default/Pod_{n}");
            let done = put(&store, &name, "\"10.0.0.1\"", Expected::Absent).await;
            assert!(done.is_some());
        }
        let all = store.list("/p/").await.expect("an answer");
        assert_eq!(all.entries.len(), KEYS);
        assert!(
            store
                .list("/p/nodes/")
                .await
                .expect("an answer")
                .entries
                .is_empty()
        );
        let (mut seen, mut last) = (Vec::new(), empty.revision);
        while seen.len() < KEYS {
            let changes = watch.next().await.expect("changes");
            for event in changes.events {
                let Event::Put(entry) = event else {
                    panic!("{event:?}");
                };
                assert!(entry.revision > last);
                last = entry.revision;
                seen.push(entry);
            }
        }
        let first = &seen[0];
        assert_eq!(first.key, "/p/names/web/0/Default/Pod_0");
        assert_eq!(store.get(&first.key).await, Ok(Some(first.clone())));
        assert_eq!(put(&store, &first.key, "1", Expected::Absent).await, None);
        assert_eq!(store.delete(&first.key, last).await, Ok(false));
        assert_eq!(store.delete(&first.key, first.revision).await, Ok(true));
        assert_eq!(store.delete(&first.key, first.revision).await, Ok(false));
        let gone = watch.next().await.expect("a change").events;
        let key = first.key.clone();
        assert_eq!(gone, [Event::Delete { key }]);
        // A change without its condition is not made, and the rest of a commit follows the first.
        let (a, b) = (&seen[1], &seen[2]);
        let expected = [
            (a.key.as_str(), Expected::At(a.revision)),
            (b.key.as_str(), Expected::At(b.revision)),
        ];
        let writes = [Write::Put(&a.key, b"2", None), Write::Delete(&b.key)];
        assert!(
            store
                .commit(&expected, &writes)
                .await
                .expect("an answer")
                .is_some()
        );
        assert_eq!(store.get(&b.key).await, Ok(None));
        assert_eq!(store.commit(&expected, &writes).await, Ok(None));
    });
}
