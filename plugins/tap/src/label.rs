//! A tap device with an SELinux label.
//!
//! The kernel gives a tap device the label of the process that creates it. It ignores the label for
//! new sockets (`sockcreate`; `selinux_tun_dev_create`, security/selinux/hooks.c). So, as in the Go
//! plugin, ip(8) creates the device and is executed with the label, which needs the right to enter
//! it (`process transition`), but not to change the label of a running process.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Result, anyhow, bail};
use cni::execute::{self, Limits};
use netlink::TapSpec;
use netns::NetNs;

/// It exists where SELinux is enabled.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// The label of the next program that this thread executes (proc_pid_attr(5)).
const EXEC: &str = "/proc/thread-self/attr/exec";

/// Whether a label can be given.
///
/// # Errors
/// SELinux is off.
pub fn available() -> Result<()> {
    if !Path::new(SELINUX).exists() {
        bail!("failed set socket label: SELinux is off on this node (no {SELINUX})");
    }
    Ok(())
}

/// Creates a tap device in `netns` with `label`: `ip tuntap add mode tap name NAME multi_queue user
/// OWNER group GROUP`. It is down, and stays.
///
/// # Errors
/// SELinux is off, or does not permit the label; ip(8) is missing or fails.
pub fn create(spec: &TapSpec, label: &str, netns: &NetNs) -> Result<()> {
    available()?;
    let arguments = arguments(spec);
    let output = netns.enter(|| {
        fs::write(EXEC, label).map_err(|error| {
            let reason = cni::reason(&error);
            anyhow!("failed set socket label: {label:?}: {reason}")
        })?;
        let started = start(&arguments);
        // Nothing else is executed with it.
        fs::write(EXEC, "")?;
        let output = started.and_then(|child| execute::finish(child, b"", Limits::PLUGIN));
        output.map_err(|error| execute::failure(Path::new("ip"), error))
    })??;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!(
            "failed to run command ip {}: {message}",
            arguments.join(" ")
        );
    }
    Ok(())
}

fn arguments(spec: &TapSpec) -> Vec<String> {
    let name = spec.name.clone();
    let words = ["tuntap", "add", "mode", "tap", "name", &name].map(str::to_owned);
    let mut arguments = Vec::from(words);
    if spec.multi_queue {
        arguments.push("multi_queue".into());
    }
    for (word, id) in [("user", spec.owner), ("group", spec.group)] {
        arguments.extend(id.iter().flat_map(|id| [word.to_owned(), id.to_string()]));
    }
    arguments
}

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel takes the label from the process, and changing our own needs another right"
)]
fn start(arguments: &[String]) -> io::Result<Child> {
    execute::start(Command::new("ip").args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_gets_what_the_keys_say() {
        let mut spec = TapSpec {
            name: "tap0".into(),
            multi_queue: false,
            owner: None,
            group: None,
            packet_information: false,
            virtio_header: false,
        };
        assert_eq!(arguments(&spec).join(" "), "tuntap add mode tap name tap0");
        spec.multi_queue = true;
        spec.owner = Some(0);
        spec.group = Some(107);
        let expected = "tuntap add mode tap name tap0 multi_queue user 0 group 107";
        assert_eq!(arguments(&spec).join(" "), expected);
    }
}
