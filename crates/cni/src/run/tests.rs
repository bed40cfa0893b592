//! Dispatch, tested in-process: the streams and the environment are parameters.

use super::*;
use serde::Deserialize;
use std::cell::RefCell;

thread_local! {
    static UNDONE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Fails as its configuration demands.
struct Puppet;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Conf {
    fail: String,
}

impl Conf {
    fn obey(&self) -> Result<()> {
        match self.fail.as_str() {
            "" => Ok(()),
            "panic" => panic!("pulled"),
            code => Err(Code::TryAgain.err(code).into()),
        }
    }
}

impl Plugin for Puppet {
    const NAME: &'static str = "puppet";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        undo.push("undo the first", || {
            UNDONE.with_borrow_mut(|undone| undone.push("first".to_owned()));
            Err(anyhow!("stuck"))
        });
        request.conf.obey()?;
        Ok(AddResult::default())
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        request.conf.obey()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        request.conf.obey()
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        request.conf.obey()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        request.conf.obey()
    }
}

struct Outcome {
    status: u8,
    stdout: String,
}

/// A stream that can be closed.
struct Sink {
    written: Vec<u8>,
    closed: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.closed {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        self.written.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn call_with(command: &str, stdin: &str, closed: bool) -> Outcome {
    let env = Environment::from_pairs([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "a"),
        ("CNI_NETNS", "/nonexistent"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/x"),
    ]);
    let mut stdout = Sink {
        written: Vec::new(),
        closed,
    };
    let mut process = Process {
        stdin: &mut stdin.as_bytes(),
        stdout: &mut stdout,
        stderr: &mut std::io::sink(),
        called: false,
    };
    let status = process.run::<Puppet>(env);
    Outcome {
        status,
        stdout: String::from_utf8(stdout.written).unwrap(),
    }
}

fn call(command: &str, stdin: &str) -> Outcome {
    call_with(command, stdin, false)
}

fn error_of(command: &str, stdin: &str) -> (u64, String) {
    let outcome = call(command, stdin);
    assert_eq!(outcome.status, 1, "{}", outcome.stdout);
    let error: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let details = error["details"].as_str();
    let text = error["msg"].as_str().unwrap().to_owned();
    (
        error["code"].as_u64().unwrap(),
        details.map_or(text.clone(), |details| format!("{text}; {details}")),
    )
}

#[test]
fn success_is_one_document() {
    let outcome = call("ADD", r#"{"name": "n", "cniVersion": "1.1.0"}"#);
    assert_eq!(outcome.stdout, "{\n    \"cniVersion\": \"1.1.0\"\n}");
    assert_eq!(outcome.status, 0);
    assert!(UNDONE.with_borrow(Vec::is_empty));
}

#[test]
fn a_failed_add_is_rolled_back_and_reports_both_failures() {
    let (code, msg) = error_of("ADD", r#"{"name": "n", "fail": "busy"}"#);
    assert_eq!(code, 11);
    assert_eq!(msg, "busy; could not undo: undo the first: stuck");
    assert_eq!(UNDONE.take(), ["first"]);
}

#[test]
fn a_panic_is_rolled_back_and_still_one_document() {
    let (code, msg) = error_of("ADD", r#"{"name": "n", "fail": "panic"}"#);
    assert_eq!(code, 999);
    assert!(msg.starts_with("panic: pulled"), "{msg}");
    assert_eq!(UNDONE.take(), ["first"]);
}

#[test]
fn a_result_that_cannot_be_written_is_rolled_back() {
    let outcome = call_with("ADD", r#"{"name": "n", "cniVersion": "1.1.0"}"#, true);
    assert_eq!(outcome.status, 1);
    assert_eq!(UNDONE.take(), ["first"]);
    // The same if the version has no form for a result without addresses.
    assert_eq!(error_of("ADD", r#"{"name": "n"}"#).0, 999);
    assert_eq!(UNDONE.take(), ["first"]);
}

#[test]
fn del_reads_what_it_can() {
    let config = r#"{"name": "n", "cniVersion": "1.1.0", "ipam": [], "fail": 7}"#;
    assert_eq!(call("DEL", config).status, 0);
    let (code, msg) = error_of("CHECK", config);
    assert_eq!(
        (code, msg.as_str()),
        (
            7,
            "failed to load netconf: ipam: expected an object, got a list"
        )
    );
}
