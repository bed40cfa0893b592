//! The life of a plugin's process: environment and standard input in, one verb
//! done, exactly one JSON document (or none) out.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{ExitCode, ExitStatus, Output};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::conf::{self, Head, Reading};
use crate::env::{Environment, NetnsPath, Variables, Verb, is_identifier};
use crate::error::{Code, Error, WithLabel, reason};
use crate::file::LONGEST;
use crate::json::Json;
use crate::linked::{self, Linked};
use crate::own_netns;
use crate::process::{self, Stdout};
use crate::request::{Add, Attachment, Call, Check, Del, Gc, Status};
use crate::result::{AddResult, pretty};
use crate::undo::Undo;
use crate::version::{self, Version};

/// A CNI plugin. No verb has a default: a plugin that has nothing to do for a verb
/// implements it and gives the reason in a comment.
pub trait Plugin {
    /// Folder, package, binary and CNI `type`.
    const NAME: &'static str;
    /// The versions that it speaks.
    const VERSIONS: &'static [Version] = Version::ALL;
    /// The delegates to call instead of executing them.
    const LINKED: &'static [Linked] = &[];
    /// The plugin's own keys. serde checks their types before any verb runs.
    type Conf: DeserializeOwned;

    /// Attaches a container. Pushes the inverse of everything that it creates for this
    /// container alone on `undo`.
    fn add(request: &Add<Self::Conf>, undo: &mut Undo) -> Result<AddResult>;
    /// Detaches a container; succeeds when nothing is left to do.
    fn del(request: &Del<Self::Conf>) -> Result<()>;
    /// Fails if the attachment is not as ADD left it.
    fn check(request: &Check<Self::Conf>) -> Result<()>;
    /// Removes what belongs to no attachment in use.
    fn gc(request: &Gc<Self::Conf>) -> Result<()>;
    /// Fails if an ADD could not succeed now.
    fn status(request: &Status<Self::Conf>) -> Result<()>;
}

/// The whole `main` of plugin `P`.
pub fn run<P: Plugin>() -> ExitCode {
    process::start();
    #[cfg(target_env = "musl")]
    crate::allocator::own_arena();
    let env = Environment::of_process();
    if matches!(env.command(), Ok(None)) && std::env::args_os().nth(1).is_some_and(is_version) {
        // Without a command, plugins print the banner of the Go plugins, and tools compare
        // it word by word. So only `--version` names the suite.
        let release = env!("CARGO_PKG_VERSION");
        let _ = writeln!(Stdout, "{SUITE} {} {release}", P::NAME);
        return ExitCode::SUCCESS;
    }
    let mut process = Process {
        stdin: &mut std::io::stdin().lock(),
        stdout: &mut Stdout,
        stderr: &mut std::io::stderr(),
        called: false,
    };
    ExitCode::from(process.run::<P>(env))
}

/// The first word of the answer to `--version`. Plugins of other suites ignore arguments.
pub const SUITE: &str = "podwire";

fn is_version(argument: std::ffi::OsString) -> bool {
    argument == "--version"
}

/// The initial size of the buffer for standard input, in bytes: a configuration is seldom
/// longer.
const USUAL: usize = 8192;

/// Makes `P` a plugin that other plugins can call instead of executing it. The executable of
/// `P` must have `Note::new(build)` in its section `.note.podwire`; builds that may act
/// differently must have different names.
pub const fn link<P: Plugin>(build: [u8; linked::BUILD]) -> Linked {
    Linked {
        name: P::NAME,
        build,
        serve: |env, stdin| serve::<P>(env, stdin, true),
    }
}

/// The output of a process of `P` with `env` and `stdin`.
fn serve<P: Plugin>(env: Environment, mut stdin: &[u8], called: bool) -> Output {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut process = Process {
        stdin: &mut stdin,
        stdout: &mut stdout,
        stderr: &mut stderr,
        called,
    };
    // A panic in a handler is rolled back and reported in there; 101 is the status of a
    // process that panics elsewhere.
    let status = catch_unwind(AssertUnwindSafe(|| process.run::<P>(env))).unwrap_or(101);
    Output {
        status: ExitStatus::from_raw(i32::from(status) << 8),
        stdout,
        stderr,
    }
}

/// The three streams of a process. Tests and linked plugins have streams of their own.
struct Process<'a> {
    stdin: &'a mut dyn Read,
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
    /// Whether another plugin calls this one. It has checked the namespace already.
    called: bool,
}

impl Process<'_> {
    /// Returns the exit status: 0, or 1 after an error was printed.
    fn run<P: Plugin>(&mut self, env: Environment) -> u8 {
        let Err(error) = self.serve::<P>(env) else {
            return 0;
        };
        let error = Error::from_chain(&error);
        if let Err(unwritten) = self.print(&error_document(&error)) {
            // Standard output is closed; the runtime may still log standard error.
            let _ = writeln!(self.stderr, "{error}; {unwritten:#}");
        }
        1
    }

    fn serve<P: Plugin>(&mut self, env: Environment) -> Result<()> {
        let command = match env.command()? {
            None => return self.banner::<P>(),
            Some("VERSION") => return self.versions::<P>(),
            Some(command) => command,
        };
        let variables = Variables::read(&env, command)?;
        let stdin = self.read_stdin()?;
        let document = parse(&stdin)?;
        let network = network_name(&document)?;
        let verb = variables.verb.ok_or_else(|| {
            Code::InvalidEnvironment.err(format!("unknown CNI_COMMAND: {command}"))
        })?;
        let version = negotiate(verb, &document, P::VERSIONS)?;
        let wires = matches!(verb, Verb::Add | Verb::Del) && !self.called;
        if wires && !env.netns_override() {
            refuse_own_namespace(variables.netns.as_ref())?;
        }
        let reading = match verb {
            Verb::Del | Verb::Gc => Reading::Lenient,
            _ => Reading::Strict,
        };
        let call = Call {
            plugin: P::NAME,
            network,
            version,
            net: conf::read(&document, reading)?,
            path: variables.path.clone(),
            args: variables.args.clone(),
            is_linked: self.called,
            env: Rc::new(env),
            stdin: stdin.into(),
            linked: P::LINKED,
        };
        let conf = conf::read(&document, reading)?;
        self.handle::<P>(verb, call, conf, variables)
    }

    fn handle<P: Plugin>(
        &mut self,
        verb: Verb,
        call: Call,
        conf: P::Conf,
        variables: Variables,
    ) -> Result<()> {
        match verb {
            Verb::Add => {
                let (attachment, netns) = (attachment(&call, &variables)?, netns(&variables)?);
                self.add::<P>(&Add {
                    call,
                    conf,
                    attachment,
                    netns,
                })
            }
            Verb::Del => {
                let attachment = attachment(&call, &variables)?;
                let netns = variables.netns;
                guarded(|| {
                    P::del(&Del {
                        call,
                        conf,
                        attachment,
                        netns,
                    })
                })
            }
            Verb::Check => {
                let (attachment, netns) = (attachment(&call, &variables)?, netns(&variables)?);
                guarded(|| {
                    P::check(&Check {
                        call,
                        conf,
                        attachment,
                        netns,
                    })
                })
            }
            Verb::Gc => self.gc::<P>(call, conf),
            Verb::Status => guarded(|| P::status(&Status { call, conf })),
            Verb::Version => self.versions::<P>(),
        }
    }

    /// The undo stack is dropped only after the result is printed.
    fn add<P: Plugin>(&mut self, request: &Add<P::Conf>) -> Result<()> {
        let mut undo = Undo::new();
        let answer = guarded(|| {
            let result = P::add(request, &mut undo)?;
            result.encode(request.call.version)
        });
        let Err(failure) = answer.and_then(|text| self.print(&text)) else {
            undo.forget();
            return Ok(());
        };
        let left = undo.roll_back();
        if left.is_empty() {
            return Err(failure);
        }
        Err(failure).details(format!("could not undo: {}", left.join("; ")))
    }

    /// Does nothing without a list of valid attachments: to treat a missing list as an empty
    /// one would cut off every running pod.
    fn gc<P: Plugin>(&mut self, call: Call, conf: P::Conf) -> Result<()> {
        let Some(valid) = conf::valid_attachments(&parse(&call.stdin)?)? else {
            let _ = writeln!(
                self.stderr,
                "GC without cni.dev/valid-attachments: nothing done"
            );
            return Ok(());
        };
        guarded(|| P::gc(&Gc { call, conf, valid }))
    }

    /// Printed if a plugin is run by hand. nerdctl parses the first line.
    fn banner<P: Plugin>(&mut self) -> Result<()> {
        let versions: Vec<_> = P::VERSIONS.iter().map(|v| v.as_str()).collect();
        let (name, release) = (P::NAME, env!("CARGO_PKG_VERSION"));
        writeln!(self.stderr, "CNI {name} plugin v{release}")?;
        writeln!(
            self.stderr,
            "CNI protocol versions supported: {}",
            versions.join(", ")
        )?;
        Ok(())
    }

    fn versions<P: Plugin>(&mut self) -> Result<()> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Versions<'a> {
            cni_version: &'a str,
            supported_versions: Vec<&'a str>,
        }
        let line = serde_json::to_string(&Versions {
            cni_version: Version::LATEST.as_str(),
            supported_versions: P::VERSIONS.iter().map(|v| v.as_str()).collect(),
        })?;
        self.print(&format!("{line}\n"))
    }

    fn read_stdin(&mut self) -> Result<Vec<u8>, Error> {
        let mut text = Vec::with_capacity(USUAL);
        let mut stdin = (&mut *self.stdin).take(LONGEST + 1);
        match stdin.read_to_end(&mut text) {
            Ok(_) if text.len() as u64 > LONGEST => Err(Code::Io.err(format!(
                "error reading from stdin: longer than {LONGEST} bytes"
            ))),
            Ok(_) => Ok(text),
            Err(error) => {
                let reason = reason(&error);
                Err(Code::Io.err(format!("error reading from stdin: {reason}")))
            }
        }
    }

    fn print(&mut self, text: &str) -> Result<()> {
        self.stdout
            .write_all(text.as_bytes())
            .and_then(|()| self.stdout.flush())
            .map_err(|error| {
                let reason = reason(&error);
                let text = format!("error writing to stdout: {reason}");
                Code::Io.err(text).into()
            })
    }
}

/// Runs `handler`. A panic becomes an error, so that it is rolled back and reported.
fn guarded<T>(handler: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(handler)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Err(anyhow!(
            "panic: {}; please report this",
            text.unwrap_or_default()
        ))
    })
}

fn parse(stdin: &[u8]) -> Result<Json, Error> {
    Json::parse(stdin).map_err(|error| {
        let error = Code::Decode.err(format!("error unmarshall network config: {error}"));
        match stdin.trim_ascii() {
            [] => error.details("standard input, where the configuration should be, is empty"),
            _ => error,
        }
    })
}

fn network_name(document: &Json) -> Result<String, Error> {
    let head: Head = document
        .decode()
        .map_err(|error| Code::Decode.err(format!("error unmarshall network config: {error}")))?;
    if head.name.is_empty() {
        return Err(Code::InvalidConfig.err("missing network name"));
    }
    if !is_identifier(&head.name) {
        return Err(Code::InvalidConfig
            .err("invalid characters found in network name")
            .details(head.name));
    }
    Ok(head.name)
}

/// The version of the configuration, if the plugin supports it and it has the verb.
fn negotiate(verb: Verb, document: &Json, supported: &[Version]) -> Result<Version, Error> {
    let text = match document.get("cniVersion") {
        None => String::new(),
        Some(Json::String(text)) => text,
        Some(_) => {
            return Err(Code::Decode
                .err("decoding version from network config: cniVersion: expected a string"));
        }
    };
    let since = match verb {
        Verb::Check => Some(Version::V0_4_0),
        Verb::Gc | Verb::Status => Some(Version::V1_1_0),
        Verb::Add | Verb::Del | Verb::Version => None,
    };
    if let Some(since) = since {
        refuse_verb(verb, &text, since, supported)?;
    }
    Version::parse(&text)
        .filter(|version| supported.contains(version))
        .ok_or_else(|| {
            let list: Vec<_> = supported
                .iter()
                .map(|v| format!("{:?}", v.as_str()))
                .collect();
            Code::IncompatibleVersion
                .err("incompatible CNI versions")
                .details(format!(
                    "config is {text:?}, plugin supports [{}]",
                    list.join(" ")
                ))
        })
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn refuse_verb(verb: Verb, text: &str, since: Version, supported: &[Version]) -> Result<(), Error> {
    let text = if text.is_empty() { "0.1.0" } else { text };
    let wanted = version::numbers(text)
        .ok_or_else(|| Code::Decode.err(format!("failed to parse version {text:?}")))?;
    let refuse = |which: &str| {
        let verb = verb.as_str();
        Err(Code::IncompatibleVersion.err(format!("{which} version does not allow {verb}")))
    };
    let is_older = |version: &Version| version::numbers(version.as_str()) < Some(wanted);
    if Some(wanted) < version::numbers(since.as_str()) {
        return refuse("config");
    }
    if supported.iter().all(is_older) {
        return refuse("plugin");
    }
    Ok(())
}

/// Refuses `CNI_NETNS` if it is the plugin's own namespace: ADD and DEL would change the
/// node's own interfaces.
fn refuse_own_namespace(netns: Option<&NetnsPath>) -> Result<(), Error> {
    let Some(theirs) = netns.and_then(|netns| std::fs::metadata(netns.as_path()).ok()) else {
        return Ok(());
    };
    let ours = own_netns::open().and_then(|fd| File::from(fd).metadata());
    let identity = |file: &Metadata| (file.dev(), file.ino());
    match ours {
        Ok(ours) if identity(&ours) == identity(&theirs) => Err(Code::InvalidNetns
            .err("plugin's netns and netns from CNI_NETNS should not be the same")),
        _ => Ok(()),
    }
}

fn attachment(call: &Call, variables: &Variables) -> Result<Attachment> {
    let missing = "verb without an attachment";
    Ok(Attachment {
        network: call.network.clone(),
        container_id: variables.container_id.clone().context(missing)?,
        ifname: variables.ifname.clone().context(missing)?,
    })
}

fn netns(variables: &Variables) -> Result<NetnsPath> {
    variables.netns.clone().context("verb without a namespace")
}

/// The document of an error: no version, no newline, details only if there are any.
fn error_document(error: &Error) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        code: u32,
        msg: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        details: &'a str,
    }
    let document = Document {
        code: error.code,
        msg: &error.msg,
        details: &error.details,
    };
    // Serializing three plain members cannot fail.
    pretty(&document).unwrap_or_else(|_| r#"{"code": 999, "msg": "internal error"}"#.to_owned())
}

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

#[cfg(test)]
mod tests;
