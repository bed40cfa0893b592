//! Executes another plugin (specification, section "Plugin Delegation").

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::env::{Environment, Verb};
use crate::error::{Code, Error, WithLabel};
use crate::execute::{self, Limits};
use crate::json::Json;
use crate::linked::Linked;
use crate::request::Call;
use crate::result::AddResult;
use crate::undo::Undo;
use crate::version::Version;

/// The first regular file with the name `name` in the directories `path`. The texts are those
/// of the Go library.
pub fn find(name: &str, path: &[PathBuf]) -> Result<PathBuf> {
    if name.is_empty() {
        bail!("no plugin name provided");
    }
    if name.contains('/') {
        bail!("invalid plugin name: {name}");
    }
    if path.is_empty() {
        bail!("no paths provided");
    }
    path.iter()
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            let dirs: Vec<_> = path.iter().map(|dir| dir.display().to_string()).collect();
            anyhow!(
                "failed to find plugin {name:?} in path [{}]",
                dirs.join(" ")
            )
        })
}

/// The IPAM plugins that send packets on the pod's interface.
const USE_THE_INTERFACE: [&str; 1] = ["dhcp"];

/// Whether the IPAM plugin sends packets on the pod's interface: the interface must exist
/// before [`ipam_add`], and still exist at [`ipam_del`].
pub fn ipam_needs_interface(call: &Call) -> bool {
    USE_THE_INTERFACE.contains(&call.net.ipam.plugin.as_str())
}

/// Requests addresses from the IPAM plugin and pushes their release on `undo`. `None` if
/// the configuration has no IPAM plugin.
///
/// # Errors
/// What the plugin reports. DEL follows a failed ADD, because the plugin may have reserved
/// an address before it failed (specification, section "Plugin Delegation").
pub fn ipam_add(call: &Call, undo: &mut Undo) -> Result<Option<AddResult>> {
    let Some(ipam) = Delegate::ipam(call)? else {
        return Ok(None);
    };
    let answer = match ipam.run(Verb::Add) {
        Ok(answer) => answer,
        Err(error) => {
            // Only the error of ADD is reported: DEL fails for the same reason.
            let _ = ipam.run(Verb::Del);
            return Err(error);
        }
    };
    let inverse = ipam.clone();
    undo.push("release the addresses", move || {
        inverse.run(Verb::Del).map(drop)
    });
    let result = Json::parse(&answer)
        .map_err(Into::into)
        .and_then(|document| AddResult::decode_any(&document, call.version))
        .with_context(|| format!("parse the result of IPAM plugin {}", call.net.ipam.plugin))?;
    if result.ips.is_empty() {
        bail!("IPAM plugin returned missing IP config");
    }
    Ok(Some(result))
}

/// Releases the addresses of the attachment. Does nothing without an IPAM plugin.
///
/// If the plugin's executable is missing, the outcome depends on `prevResult`. With one, ADD
/// has succeeded and addresses are reserved: DEL fails, so that the runtime calls it again
/// when the operator has restored the executable. Without one, ADD has failed, perhaps
/// because `type` is misspelt: DEL succeeds, because runtimes repeat it until it does and
/// keep the pod's name until then.
pub fn ipam_del(call: &Call) -> Result<()> {
    match Delegate::ipam(call) {
        Ok(ipam) => run(ipam, Verb::Del),
        Err(missing) if may_hold_addresses(call) => Err(missing)
            .details("the addresses stay reserved until it is there and DEL is called again"),
        Err(missing) => {
            let why = "no result of an ADD is known, so nothing is released";
            crate::log(format_args!("{missing:#}; {why}"));
            Ok(())
        }
    }
}

/// Whether ADD may have succeeded. Runtimes pass `prevResult` to DEL since 0.4.0.
fn may_hold_addresses(call: &Call) -> bool {
    let has_prev_result = call.version >= Version::V0_4_0;
    !is_itself(call) && (!has_prev_result || call.net.prev_result.is_some())
}

/// Whether `ipam.type` is the plugin's own type: it would execute itself endlessly.
fn is_itself(call: &Call) -> bool {
    call.net.ipam.plugin == call.plugin
}

/// Has the IPAM plugin check that the attachment holds its addresses. Does nothing without
/// an IPAM plugin.
pub fn ipam_check(call: &Call) -> Result<()> {
    run(Delegate::ipam(call)?, Verb::Check)
}

/// Forwards a GC. Does nothing without an IPAM plugin.
pub fn ipam_gc(call: &Call) -> Result<()> {
    run(Delegate::ipam(call)?, Verb::Gc)
}

/// Forwards a STATUS; an IPAM plugin that cannot be executed is code 50. Does nothing
/// without an IPAM plugin.
pub fn ipam_status(call: &Call) -> Result<()> {
    run(Delegate::ipam(call).code(Code::NotAvailable)?, Verb::Status)
}

fn run(ipam: Option<Delegate>, verb: Verb) -> Result<()> {
    ipam.map_or(Ok(()), |ipam| ipam.run(verb).map(drop))
}

/// A plugin to execute, or to call if it is linked into this program.
#[derive(Clone)]
pub struct Delegate {
    executable: PathBuf,
    linked: Option<&'static Linked>,
    env: Rc<Environment>,
    stdin: Rc<[u8]>,
}

impl Delegate {
    /// The IPAM plugin of the configuration, if it has one.
    fn ipam(call: &Call) -> Result<Option<Self>> {
        let name = &call.net.ipam.plugin;
        if name.is_empty() {
            return Ok(None);
        }
        if is_itself(call) {
            let text = format!("ipam.type: {name:?} is this plugin itself, not an IPAM plugin");
            return Err(Code::InvalidConfig.err(text).into());
        }
        let executable = find(name, &call.path)?;
        Ok(Some(Self {
            linked: Linked::find(call.linked, name, &executable),
            executable,
            env: Rc::clone(&call.env),
            stdin: Rc::clone(&call.stdin),
        }))
    }

    /// The plugin in the file `executable`, with an environment and a standard input.
    pub fn new(executable: &Path, env: Environment, stdin: &[u8]) -> Self {
        Self {
            executable: executable.to_owned(),
            linked: None,
            env: Rc::new(env),
            stdin: Rc::from(stdin),
        }
    }

    /// Executes the plugin for `verb` and returns its standard output.
    ///
    /// # Errors
    /// The error that the plugin reports, unchanged ([`Error::document`]).
    pub fn run(&self, verb: Verb) -> Result<Vec<u8>> {
        let output = match self.linked {
            Some(linked) => linked.run(verb, &self.env, &self.stdin),
            None => self
                .execute(verb)
                .map_err(|error| execute::failure(&self.executable, error))?,
        };
        if !output.status.success() {
            return Err(reported(&output).into());
        }
        // The runtime logs our standard error.
        let _ = std::io::stderr().write_all(&output.stderr);
        Ok(output.stdout)
    }

    fn execute(&self, verb: Verb) -> std::io::Result<Output> {
        execute::finish(self.spawn(verb)?, &self.stdin, Limits::PLUGIN)
    }

    /// Retries for 5 s while the file is open for writing (ETXTBSY): it is being replaced.
    fn spawn(&self, verb: Verb) -> std::io::Result<std::process::Child> {
        let mut tries = 5;
        loop {
            match execute::start(&mut self.command(verb)) {
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && tries > 0 => {
                    tries -= 1;
                    sleep(Duration::from_secs(1));
                }
                other => return other,
            }
        }
    }

    #[allow(clippy::disallowed_methods)] // the one place that executes
    fn command(&self, verb: Verb) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .env_clear()
            .envs(self.env.iter())
            .env("CNI_COMMAND", verb.as_str());
        command
    }
}

/// The error document of a plugin.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Report {
    code: u32,
    msg: String,
    details: String,
}

/// The error of a plugin that failed with `output`. The texts are those of the Go library.
fn reported(output: &Output) -> Error {
    let silent = || {
        let how = exit_text(output);
        format!("netplugin failed with no error message: {how}")
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    let logged = String::from_utf8_lossy(&output.stderr);
    let msg = if printed.is_empty() && logged.is_empty() {
        silent()
    } else if printed.is_empty() {
        format!("netplugin failed: {logged:?}")
    } else {
        let report = Json::parse(&output.stdout)
            .map_err(|error| error.to_string())
            .and_then(|document| document.decode().map_err(|error| error.to_string()));
        match report {
            // The result of a plugin that was killed after it had printed it.
            Ok(Report { code: 0, msg, .. }) if msg.is_empty() => silent(),
            Ok(Report { code, msg, details }) => return Error::document(code, msg, details),
            Err(why) => format!(
                "netplugin failed but error parsing its diagnostic message {printed:?}: {why}"
            ),
        }
    };
    Error::document(0, msg, "")
}

fn exit_text(output: &Output) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn failed(stdout: &str, stderr: &str) -> Error {
        reported(&Output {
            status: ExitStatus::from_raw(2 << 8),
            stdout: stdout.into(),
            stderr: stderr.into(),
        })
    }

    #[test]
    fn a_plugin_is_found_by_name_only() {
        let dirs = [PathBuf::from("/nonexistent"), PathBuf::from("/x")];
        for (name, dirs, text) in [
            ("", &dirs[..], "no plugin name provided"),
            ("../x", &dirs, "invalid plugin name: ../x"),
            ("x", &[], "no paths provided"),
            (
                "x",
                &dirs,
                "failed to find plugin \"x\" in path [/nonexistent /x]",
            ),
        ] {
            assert_eq!(find(name, dirs).unwrap_err().to_string(), text);
        }
    }

    /// A plugin of two lines of shell that prints the length of its input.
    fn counted(stdin: &[u8]) -> String {
        let dir = std::env::temp_dir().join(format!("delegate-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join(stdin.len().to_string());
        let script = "#!/bin/sh\nhead -c 70000 /dev/zero\nwc -c\n";
        std::fs::write(&file, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).unwrap();
        let env = Environment::from_pairs([("PATH", "/usr/bin:/bin")]);
        let answer = Delegate::new(&file, env, stdin).run(Verb::Add).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        String::from_utf8_lossy(&answer[70000..]).trim().to_owned()
    }

    #[test]
    fn large_input_and_output_do_not_block_each_other() {
        assert_eq!(counted(b"{}"), "2");
        assert_eq!(counted(&[b' '; 300_000]), "300000");
    }

    #[test]
    fn the_error_of_a_delegate_is_passed_on_unchanged() {
        let error = failed(r#"{"code": 11, "msg": "busy", "details": "x"}"#, "noise");
        assert_eq!(
            (error.code, error.msg.as_str(), error.details.as_str()),
            (11, "busy", "x")
        );
    }

    #[test]
    fn a_delegate_without_a_document_is_quoted() {
        assert_eq!(failed("", "oh no").msg, "netplugin failed: \"oh no\"");
        assert_eq!(
            failed("", "").msg,
            "netplugin failed with no error message: exit status 2"
        );
        assert_eq!(
            failed(r#"{"cniVersion": "1.0.0", "ips": []}"#, "").msg,
            "netplugin failed with no error message: exit status 2"
        );
        assert!(
            failed("{", "")
                .msg
                .starts_with("netplugin failed but error parsing its diagnostic message \"{\": ")
        );
    }
}
