//! tuning: changes kernel settings and link attributes of a pod.
//!
//! A chained plugin: it runs after the plugin that made the pod's interface, and returns that
//! plugin's result with the new MAC and MTU.

mod allowlist;
pub mod backup;
pub mod conf;
pub mod plan;

use anyhow::{Context, Result, bail};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Attachment, Plugin, Undo};
use netlink::{Link, Netlink, sysctl};
use netns::NetNs;
use wiring::notes::Notes;
use wiring::pod;

use crate::backup::Backup;
pub use crate::conf::Conf;
pub use crate::plan::Plan;
use crate::plan::{Attributes, Sysctl};

/// The plugin.
pub struct Tuning;

impl Plugin for Tuning {
    const NAME: &'static str = "tuning";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, owner) = (&request.call, &request.attachment);
        let [mac] = call.args(["MAC"])?;
        let Plan { sysctls, link } = Plan::new(&request.conf, mac)?;
        allowlist::permit(&sysctls)?;
        let previous = call.required_prev_result("Required prevResult missing")?;
        let netns = NetNs::open(request.netns.as_path())?;
        let ifname = owner.ifname.as_str();
        set_sysctls(&netns, &sysctls, ifname, undo)?;
        if !link.is_empty() {
            let backup = Backup::of(owner, &request.conf.data_dir);
            note(owner, &backup, undo)?;
            set_attributes(&netns, &link, ifname, backup, undo)?;
        }
        Ok(link.in_result(previous, ifname, call.version))
    }

    /// Gives the interface its original attributes. Settings of the namespace end with it.
    fn del(request: &Del<Conf>) -> Result<()> {
        let owner = &request.attachment;
        let backup = Backup::of(owner, &request.conf.data_dir);
        if let Some(original) = backup.read()? {
            pod::in_netns(request.netns.as_ref(), |pod| {
                restore(pod, owner.ifname.as_str(), &original)
            })?;
        }
        backup.remove()?;
        notes(&owner.network).forget(owner)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let [mac] = request.call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, mac)?;
        request.prev_result()?;
        let netns = NetNs::open(request.netns.as_path())?;
        let ifname = request.attachment.ifname.as_str();
        check_sysctls(&netns, &plan.sysctls, ifname)?;
        if plan.link.is_empty() {
            return Ok(());
        }
        let link = Netlink::open_in(&netns)?.find_link(ifname)?;
        let link = link.with_context(|| format!("Cannot find container link {ifname}"))?;
        plan.link.compare(&link).map_err(anyhow::Error::msg)
    }

    /// Files of the Go plugin stay: their names contain no network, so they may be another one's.
    fn gc(request: &Gc<Conf>) -> Result<()> {
        let remove = |path: &str| Backup::at(path).remove();
        notes(&request.call.network).collect(&request.valid, remove, |_| Ok(()))
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        allowlist::permit(&Plan::new(&request.conf, None)?.sysctls)
    }
}

/// The use that an attachment notes if a file has its original attributes.
const FILE: &str = "file";

fn notes(network: &str) -> Notes {
    Notes::of(Tuning::NAME, network)
}

/// Notes the path of the file of `owner` for GC, which does not know the directory.
fn note(owner: &Attachment, backup: &Backup, undo: &mut Undo) -> Result<()> {
    if backup.read()?.is_none() {
        let owner = owner.clone();
        undo.push("forget the original attributes", move || {
            notes(&owner.network).forget(&owner)
        });
    }
    notes(&owner.network).add(FILE, owner, &backup.path().to_string_lossy())
}

/// Sets kernel settings from inside the pod's namespace: `sysctl -w NAME=VALUE …`.
fn set_sysctls(netns: &NetNs, sysctls: &[Sysctl], ifname: &str, undo: &mut Undo) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let (set, done) = netns.enter(|| {
        let mut set = Vec::new();
        for sysctl in sysctls {
            let path = sysctl.path(ifname);
            match sysctl::exchange(&path, &sysctl.value) {
                Ok(original) => set.extend(original.map(|original| (path, original))),
                Err(error) => return (set, Err(error)),
            }
        }
        (set, Ok(()))
    })?;
    let netns = netns.clone();
    undo.push("set the original sysctls", move || {
        netns.enter(|| {
            let mut set = set.iter().rev();
            set.try_for_each(|(path, original)| sysctl::write(path, original))
        })??;
        Ok(())
    });
    Ok(done?)
}

fn check_sysctls(netns: &NetNs, sysctls: &[Sysctl], ifname: &str) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    netns.enter(|| {
        for sysctl in sysctls {
            let path = sysctl.path(ifname);
            match sysctl::read(&path) {
                // This setting can only be written.
                Err(error) if error.is_forbidden() => {}
                current => {
                    let (wanted, current) = (&sysctl.value, current?);
                    if !sysctl.is(&current) {
                        bail!(
                            "Error: Tuning configured value of /proc/sys/{path} is {wanted}, current value is {current}"
                        );
                    }
                }
            }
        }
        Ok(())
    })?
}

/// Keeps the original attributes of the pod's interface, then sets those that are `wanted`.
fn set_attributes(
    netns: &NetNs,
    wanted: &Attributes,
    ifname: &str,
    backup: Backup,
    undo: &mut Undo,
) -> Result<()> {
    let pod = Netlink::open_in(netns)?;
    let link = pod.get_link(ifname);
    let link = link.map_err(|error| error.reword(format!("failed to get {ifname:?}")))?;
    let current = wanted.of(&link);
    // At a second ADD, the interface has the attributes that the first one set.
    let kept = backup.read()?;
    let original = kept.clone().unwrap_or_default().or(current.clone());
    let (back, name, file) = (pod.clone(), ifname.to_owned(), backup.clone());
    let is_new = kept.as_ref() != Some(&original);
    undo.push("give the interface its attributes back", move || {
        restore(&back, &name, &current)?;
        match kept {
            Some(kept) => file.write(&kept),
            None => file.remove(),
        }
    });
    if is_new {
        backup.write(&original)?;
    }
    Ok(set(&pod, &link, wanted)?)
}

/// Gives the interface `ifname` the attributes `original`, if it still exists. What the kernel
/// refuses for good is only logged, because the pod can cause that.
fn restore(pod: &Netlink, ifname: &str, original: &Attributes) -> Result<()> {
    let Some(link) = pod.find_link(ifname)? else {
        return Ok(());
    };
    match set(pod, &link, original) {
        Err(error) if error.is_for_good() => {
            cni::log(format_args!(
                "give {ifname} its original attributes: {error}"
            ));
            Ok(())
        }
        done => Ok(done?),
    }
}

/// Sets every attribute that `wanted` has, also if the kernel refuses one: `ip link set NAME …`.
///
/// # Errors
/// The first refusal.
fn set(pod: &Netlink, link: &Link, wanted: &Attributes) -> Result<(), netlink::Error> {
    let index = link.index;
    let done = [
        wanted.mac.map(|mac| pod.set_mac(index, mac)),
        wanted.promisc.map(|on| pod.set_promisc(index, on)),
        wanted.mtu.map(|mtu| pod.set_mtu(index, mtu)),
        wanted.allmulti.map(|on| pod.set_allmulti(index, on)),
        wanted
            .tx_queue_len
            .map(|it| pod.set_tx_queue_len(index, it)),
    ];
    done.into_iter().flatten().collect()
}
