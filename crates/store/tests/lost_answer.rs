//! Transactions whose answer is lost on the way: they have happened, or not, and no answer may say the wrong one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use sandbox::here::{command, enter};
use store::{Access, Error, Etcd, Expected, Store, Transactions, Write as Change};

const ETCD: &str = "127.0.0.1:2379";
/// The way to the same etcd on which answers are lost.
const LOSSY: &str = "127.0.0.1:2400";
const KEY: &str = "/test/key";

/// A member of etcd, until the end of the test.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_etcd(dir: &std::path::Path) -> Member {
    let data = dir.display();
    let options = format!(
        "etcd --data-dir={data} --log-level=error --listen-client-urls=http://{ETCD} \
         --advertise-client-urls=http://{ETCD} --listen-peer-urls=http://127.0.0.1:2380"
    );
    Member(command(&options).spawn().expect("start etcd"))
}

/// Carries all requests, and all answers until `is_lossy` is set. From then on it loses them, and after a
/// while the connection: by then etcd has executed the request.
fn open_lossy_way(is_lossy: &Arc<AtomicBool>) {
    let listener = TcpListener::bind(LOSSY).expect("listen");
    let is_lossy = Arc::clone(is_lossy);
    spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(ETCD).expect("reach etcd");
            let copy = |stream: &TcpStream| stream.try_clone().expect("a copy");
            let (requests, answers) = ((copy(&near), copy(&far)), (far, near));
            spawn(move || carry(requests, || false));
            let is_lossy = Arc::clone(&is_lossy);
            spawn(move || carry(answers, || is_lossy.load(Ordering::SeqCst)));
        }
    });
}

fn carry((mut from, mut to): (TcpStream, TcpStream), is_lost: impl Fn() -> bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if is_lost() {
            sleep(Duration::from_secs(2));
            break;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn connection(endpoints: &[&str]) -> Etcd {
    let access = Access {
        endpoints: endpoints.iter().map(|it| format!("http://{it}")).collect(),
        ..Access::default()
    };
    Etcd::new(access).expect("endpoints")
}

#[test]
fn a_transaction_that_may_have_happened_is_not_said_to_have_failed() {
    enter();
    let dir = tempfile::tempdir().expect("a directory");
    let _etcd = start_etcd(dir.path());
    let is_lossy = Arc::new(AtomicBool::new(false));
    open_lossy_way(&is_lossy);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (direct, deadline) = (
            connection(&[ETCD]),
            Instant::now() + Duration::from_secs(30),
        );
        while direct.get(KEY).await.is_err() {
            assert!(Instant::now() < deadline, "etcd does not serve");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let etcd = connection(&[LOSSY, ETCD]);
        assert_eq!(etcd.get(KEY).await, Ok(None));
        assert_eq!(etcd.endpoint(), format!("http://{LOSSY}"));
        is_lossy.store(true, Ordering::SeqCst);
        let put = [Change::Put(KEY, b"first", None)];
        let done = etcd.commit(&[(KEY, Expected::Absent)], &put).await;
        // The second member finds the key that the first one has made.
        assert_eq!(etcd.endpoint(), format!("http://{ETCD}"));
        assert!(matches!(done, Err(Error::Unavailable(_))), "{done:?}");
        let entry = etcd.get(KEY).await.expect("an answer").expect("the key");
        assert_eq!(entry.value, b"first");
        // Without a lost answer, it is certain that nothing has changed.
        let put = [Change::Put(KEY, b"second", None)];
        let done = etcd.commit(&[(KEY, Expected::Absent)], &put).await;
        assert_eq!(done, Ok(None));
    });
}
