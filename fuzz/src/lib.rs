//! What the targets share: the format of their inputs, the checks of every answer, and a
//! run over a corpus without a fuzzer.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use cni::env::Environment;
use cni::fuzzing::serve;
use cni::json::Json;
use cni::{Add, AddResult, Attachment, Call, Check, Del, Gc, Plugin, Status, Undo};
use serde::de::DeserializeOwned;

/// The part of a plugin that runs before it touches anything.
pub trait Parser {
    /// The plugin's name.
    const NAME: &'static str;
    /// The plugin's keys.
    type Conf: DeserializeOwned;

    /// Reads and checks everything; `owner` where the verb names an attachment.
    ///
    /// # Errors
    /// As the plugin's.
    fn parse(call: &Call, conf: &Self::Conf, owner: Option<&Attachment>) -> Result<()>;
}

/// A plugin that only parses: the protocol around it is that of every plugin.
struct Stub<P>(P);

impl<P: Parser> Plugin for Stub<P> {
    const NAME: &'static str = P::NAME;
    type Conf = P::Conf;

    fn add(request: &Add<P::Conf>, undo: &mut Undo) -> Result<AddResult> {
        undo.push("undo nothing", || Ok(()));
        P::parse(&request.call, &request.conf, Some(&request.attachment))?;
        Ok(request.call.prev_result()?.unwrap_or_default())
    }

    fn del(request: &Del<P::Conf>) -> Result<()> {
        P::parse(&request.call, &request.conf, Some(&request.attachment))
    }

    fn check(request: &Check<P::Conf>) -> Result<()> {
        P::parse(&request.call, &request.conf, Some(&request.attachment))?;
        request.call.prev_result().map(drop)
    }

    fn gc(request: &Gc<P::Conf>) -> Result<()> {
        P::parse(&request.call, &request.conf, None)
    }

    fn status(request: &Status<P::Conf>) -> Result<()> {
        P::parse(&request.call, &request.conf, None)
    }
}

/// A whole call: lines `NAME=VALUE` for the environment, an empty line, standard input.
///
/// # Panics
/// If a runtime could not read the answer.
pub fn call<P: Parser>(input: &[u8]) {
    let (env, stdin) = split_call(input);
    assert_readable(&serve::<Stub<P>>(env, stdin));
}

fn split_call(input: &[u8]) -> (Environment, &[u8]) {
    let end = input.windows(2).position(|pair| pair == b"\n\n");
    let (head, stdin) = match end {
        Some(end) => (&input[..end], &input[end + 2..]),
        None => (&[][..], input),
    };
    let pairs = head.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        Some((os(&line[..at]), os(&line[at + 1..])))
    });
    (Environment::from_pairs(pairs), stdin)
}

fn os(bytes: &[u8]) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
}

/// The output is empty or one document; a failure is an error document whose text does not
/// report a panic.
fn assert_readable(output: &std::process::Output) {
    let stdout = &output.stdout;
    let text = String::from_utf8_lossy(stdout);
    if output.status.success() {
        assert!(
            stdout.is_empty() || Json::parse(stdout).is_ok(),
            "no document: {text}"
        );
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{text}");
    let error: serde_json::Value = serde_json::from_slice(stdout).unwrap_or_default();
    let message = error["msg"].as_str().unwrap_or_default();
    assert!(error["code"].is_u64() && !message.is_empty(), "{text}");
    // At its beginning: an input may name its container like this.
    assert!(!message.starts_with("panic: "), "{text}");
}

/// Runs `target` over every file that is named on the command line.
pub fn replay(target: impl Fn(&[u8])) -> ExitCode {
    let mut count = 0;
    for file in std::env::args_os().skip(1).map(PathBuf::from) {
        let input = match std::fs::read(&file) {
            Ok(input) => input,
            Err(error) => {
                eprintln!("read {}: {error}", file.display());
                return ExitCode::FAILURE;
            }
        };
        // If the target panics or hangs, the last line names the input.
        eprintln!("{}", file.display());
        target(&input);
        count += 1;
    }
    eprintln!("{count} inputs");
    ExitCode::SUCCESS
}
