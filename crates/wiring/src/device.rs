//! A device of the node in a pod: ADD takes it there, DEL and GC return it under its own name.
//!
//! The pod controls its namespace: it can change the name and the alias of the device, and give
//! them to another link. So ADD notes the device's properties before it moves the device, and DEL
//! returns the link that the note describes. ADD also sets the alias to the name, as the Go plugin
//! does. DEL reads the alias if there is no note: the Go plugin attached the pod, or the node has
//! lost `/run`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cni::env::IfName;
use cni::json;
use cni::request::{Add, Del, Gc};
use cni::{Attachment, Code, SystemError, Undo};
use netlink::{Device, HardwareAddress, Netlink};
use netns::NetNs;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::alias::has_mark;
use crate::notes::Notes;
use crate::pod;

/// The use that an attachment with a device notes.
const DEVICE: &str = "device";

/// The plugin to which the notes belong.
const PLUGIN: &str = "host-device";

/// How long DEL waits for hardware whose namespace has ended: the kernel returns it a moment later.
const RETURN: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// A device as it was on the node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Origin {
    name: String,
    alias: String,
    altnames: Vec<String>,
    index: u32,
    up: bool,
    kind: Option<String>,
    /// The index of a veth's peer, or of a parent.
    link: Option<u32>,
    /// Whether that link was in another namespace than the node's.
    link_elsewhere: bool,
    permanent: String,
    bus_id: String,
    /// `CNI_IFNAME` and `CNI_NETNS` of the ADD.
    ifname: String,
    netns: String,
}

/// Where to look for a device.
#[derive(Clone, Copy, Debug)]
enum Place {
    Node,
    /// A pod, and the id of the node's namespace in it.
    Pod(Option<i32>),
}

/// What a configuration says about the device of a pod without a note.
#[derive(Clone, Debug, Default)]
pub struct Hint {
    /// Its name on the node, or empty.
    pub name: String,
    /// Its hardware address.
    pub address: Option<HardwareAddress>,
    /// The present name on the node of the interface at its place on a bus, or empty.
    pub present: String,
}

/// Moves `device` from the node (the socket `host`) into the pod, where it is down and has the name
/// `CNI_IFNAME`. Its return is pushed on `undo`.
///
/// # Errors
/// `failed to move link …`: the pod has an interface of that name, or the kernel cannot move the
/// device; `device …` is another attachment's.
pub fn take<C>(
    request: &Add<C>,
    host: &Netlink,
    device: &Device,
    netns: &NetNs,
    undo: &mut Undo,
) -> Result<()> {
    let owner = &request.attachment;
    let name = &device.link.name;
    if has_mark(&device.link) {
        let alias = device.link.alias.as_deref().unwrap_or_default();
        bail!("failed to move link {name:?}: it belongs to {alias}");
    }
    let pod = Netlink::open_in(netns)?;
    let notes = notes(&owner.network);
    if let Some(earlier) = notes.find(owner).and_then(|it| Origin::parse(&it))
        && let Some(device) = earlier.find_in(&pod)?
    {
        let (had, now) = (&earlier.name, &device.link.name);
        bail!(
            "failed to move link {name:?}: this interface has the device {had:?} already, as {now:?}"
        );
    }
    let ifname = owner.ifname.as_str();
    let failed = |error: SystemError| {
        let text = "failed to move link failed to move";
        error.reword(format!(
            "{text} {ifname:?} (host: {name:?}) to container NS"
        ))
    };
    if pod.find_link(ifname)?.is_some() {
        return Err(failed(SystemError::new("", Errno::EEXIST)).into());
    }
    let origin = Origin::of(device, request);
    let (back, from, forgotten) = (origin.clone(), netns.clone(), owner.clone());
    undo.push(format!("return {name}"), move || {
        back.undo(&from)?;
        self::notes(&forgotten.network).forget(&forgotten)
    });
    // Before the device moves: a DEL after a kill finds it by the note.
    notes.add(DEVICE, owner, &serde_json::to_string(&origin)?)?;
    // `alias` is the name alone, as the Go plugin reads it.
    host.move_link(device.link.index, netns, ifname, name)
        .map_err(failed)?;
    Ok(())
}

/// DEL: returns the device of the attachment to the node, under its own name, whatever the pod has
/// changed. The device is down then, as after a DEL of the Go plugin. `hint` describes the device
/// if there is no note; without both, nothing is returned.
///
/// # Errors
/// `failed to move "net1" to hostNS: file exists`, code 11: the node has another interface with the
/// device's name. The device stays where it is, without addresses.
pub fn give_back<C>(request: &Del<C>, hint: Option<&Hint>) -> Result<()> {
    let owner = &request.attachment;
    let notes = notes(&owner.network);
    let netns = pod::find_netns(request.netns.as_ref())?;
    match notes.find(owner).and_then(|it| Origin::parse(&it)) {
        Some(origin) => origin.give_back(netns.as_ref())?,
        None => hint.map_or(Ok(()), |hint| {
            give_back_unnoted(owner, netns.as_ref(), hint)
        })?,
    }
    notes.forget(owner)
}

/// GC: returns the devices of attachments that are not valid.
///
/// # Errors
/// As [`give_back`].
pub fn collect<C>(request: &Gc<C>) -> Result<()> {
    let give_back = |note: &str| {
        let Some(origin) = Origin::parse(note) else {
            return Ok(());
        };
        let path = Some(cni::env::NetnsPath::new(origin.netns.as_str()));
        let netns = pod::find_netns(path.as_ref().filter(|it| !it.as_str().is_empty()))?;
        origin.give_back(netns.as_ref())
    };
    notes(&request.call.network).collect(&request.valid, give_back, |_| Ok(()))
}

fn notes(network: &str) -> Notes {
    Notes::of(PLUGIN, network)
}

impl Origin {
    fn of<C>(device: &Device, request: &Add<C>) -> Self {
        let link = &device.link;
        Self {
            name: link.name.clone(),
            // An early version of the Go plugin leaves the device's own name as its alias.
            alias: link
                .alias
                .clone()
                .filter(|it| *it != link.name)
                .unwrap_or_default(),
            altnames: device.altnames.clone(),
            index: link.index,
            up: link.up,
            kind: link.kind.clone(),
            link: link.link,
            link_elsewhere: link.link_netnsid.is_some(),
            permanent: device.permanent.to_string(),
            bus_id: device.bus_id.clone(),
            ifname: request.attachment.ifname.to_string(),
            netns: request.netns.as_str().to_owned(),
        }
    }

    fn parse(note: &str) -> Option<Self> {
        let origin: Self = json::read(note).ok()?;
        // Another program may have written the file: a link must be able to have the name.
        IfName::parse(&origin.name).is_ok().then_some(origin)
    }

    /// Whether `device` can be this one, judged by properties that a pod cannot change.
    fn is_same(&self, device: &Device, place: Place) -> bool {
        let link = &device.link;
        let both = |one: &str, other: &str| !one.is_empty() && !other.is_empty();
        let permanent = device.permanent.to_string();
        let is_hardware_same = if both(&self.bus_id, &device.bus_id) {
            self.bus_id == device.bus_id
        } else {
            self.permanent == permanent
        };
        // A pod can make no link whose other end (veth) or parent (vlan) is outside of the pod.
        let is_outside = match place {
            Place::Node => link.link_netnsid.is_some() == self.link_elsewhere,
            Place::Pod(_) if self.link_elsewhere => link.link_netnsid.is_some(),
            Place::Pod(node) => link.link_netnsid.is_some() && link.link_netnsid == node,
        };
        !device.loopback
            && self.kind == link.kind
            && is_hardware_same
            && self.link == link.link
            && (self.link.is_none() || is_outside)
    }

    /// Whether [`Self::is_same`] holds for one link only. There can be many dummies, or macvlans on
    /// one parent.
    fn is_unique(&self) -> bool {
        let is_hardware = !self.permanent.is_empty() || !self.bus_id.is_empty();
        is_hardware || self.kind.as_deref() == Some("veth")
    }

    /// The device among `devices`; of several, the one that looks most like it.
    fn pick<'a>(&self, devices: &'a [Device], place: Place) -> Option<&'a Device> {
        let has_alias = |it: &Device| it.link.alias.as_ref() == Some(&self.name);
        let has_name = |it: &Device| match place {
            Place::Node => false,
            Place::Pod(_) => [&self.ifname, &self.name].contains(&&it.link.name),
        };
        let mut same: Vec<_> = devices
            .iter()
            .filter(|it| self.is_same(it, place))
            .filter(|it| self.is_unique() || has_alias(it) || has_name(it))
            .collect();
        same.sort_by_key(|it| (has_alias(it), has_name(it), it.link.index == self.index));
        same.pop()
    }

    fn find_in(&self, pod: &Netlink) -> Result<Option<Device>> {
        let devices = pod.list_devices()?;
        // Queried after the list: the kernel assigns ids to namespaces when it lists links.
        let node = pod.id_of(&NetNs::current()?)?;
        Ok(self.pick(&devices, Place::Pod(node)).cloned())
    }

    /// Undoes an ADD.
    fn undo(&self, netns: &NetNs) -> Result<()> {
        self.give_back(Some(netns))?;
        let host = Netlink::open()?;
        match host.find_link(&self.name)? {
            Some(link) if self.up && !link.up => Ok(host.set_up(link.index)?),
            _ => Ok(()),
        }
    }

    /// Returns the device from `netns`, or restores it on the node, to which the kernel moves it
    /// when its namespace ends.
    fn give_back(&self, netns: Option<&NetNs>) -> Result<()> {
        let host = Netlink::open()?;
        if let Some(device) = self.find_at_home(&host)? {
            return self.restore_alias(&host, &device);
        }
        if let Some(netns) = netns {
            let pod = Netlink::open_in(netns)?;
            if let Some(device) = self.find_in(&pod)? {
                return self.move_home(&host, &pod, &device);
            }
        }
        match self.find_returned(&host, netns.is_none())? {
            Some(device) => self.rename(&host, &device),
            // It was deleted, unplugged, or is in another namespace of the pod.
            None => Ok(()),
        }
    }

    /// Finds the device on the node under its own name: it never left, or has been returned.
    fn find_at_home(&self, host: &Netlink) -> Result<Option<Device>> {
        let device = host.find_device(&self.name)?;
        Ok(device.filter(|it| {
            let is_it = self.is_unique() || it.link.index == self.index;
            it.link.name == self.name && is_it && self.is_same(it, Place::Node)
        }))
    }

    /// Finds the device on the node under a name that the pod gave it.
    fn find_returned(&self, host: &Netlink, vanished: bool) -> Result<Option<Device>> {
        let is_awaited = vanished && self.kind.is_none();
        let until = Instant::now() + RETURN;
        loop {
            let found = self.pick(&host.list_devices()?, Place::Node).cloned();
            if found.is_some() || !is_awaited || Instant::now() > until {
                return Ok(found);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn restore_alias(&self, host: &Netlink, device: &Device) -> Result<()> {
        if device.link.alias.as_ref() == Some(&self.name) {
            host.set_alias(device.link.index, &self.alias)?;
        }
        Ok(())
    }

    /// Moves the device from the pod to the node. Its name and alias are changed before anything on
    /// the node sees it: udev and NetworkManager act on names.
    fn move_home(&self, host: &Netlink, pod: &Netlink, device: &Device) -> Result<()> {
        let (index, was) = (device.link.index, &device.link.name);
        if host.find_link(&self.name)?.is_some() {
            // The addresses are released now, so the device must not answer for them.
            for it in pod.list_addresses(index, None)? {
                pod.delete_address(index, it.address)?;
            }
            return Err(self.is_taken(was));
        }
        self.delete_altnames(pod, device)?;
        // Kernels before 6.2 rename no interface that is up.
        pod.set_down(index)?;
        if *was != self.name
            && let Err(error) = pod.rename(index, &self.name)
            // Another interface of the pod has the name: the node then sees the device's name in
            // the pod for a moment.
            && !error.is_exists()
        {
            return Err(error.into());
        }
        if let Err(error) = pod.move_link(index, &NetNs::current()?, &self.name, &self.alias) {
            let _ = pod.rename(index, was);
            let _ = pod.set_up(index);
            return if error.is_exists() {
                Err(self.is_taken(was))
            } else {
                Err(error
                    .reword(format!("failed to move {was:?} to hostNS"))
                    .into())
            };
        }
        self.restore_altnames(host, device)
    }

    /// Gives the device its own name on the node, where the kernel has put it under another one.
    fn rename(&self, host: &Netlink, device: &Device) -> Result<()> {
        let index = device.link.index;
        if device.link.name != self.name {
            if host.find_link(&self.name)?.is_some() {
                return Err(self.is_taken(&device.link.name));
            }
            host.set_down(index)?;
            host.rename(index, &self.name)?;
        }
        host.set_alias(index, &self.alias)?;
        self.delete_altnames(host, device)?;
        self.restore_altnames(host, device)
    }

    /// Deletes the alternative names that the device did not have on the node before.
    fn delete_altnames(&self, netlink: &Netlink, device: &Device) -> Result<()> {
        let further = device.altnames.iter();
        for altname in further.filter(|it| !self.altnames.contains(it)) {
            netlink.delete_altname(device.link.index, altname)?;
        }
        Ok(())
    }

    /// The pod can delete alternative names. Another link may have them now, so a failure is only
    /// logged.
    fn restore_altnames(&self, host: &Netlink, device: &Device) -> Result<()> {
        let Some(link) = host.find_link(&self.name)? else {
            return Ok(());
        };
        for altname in self
            .altnames
            .iter()
            .filter(|it| !device.altnames.contains(it))
        {
            if let Err(error) = host.add_altname(link.index, altname) {
                cni::log(format_args!("{} has lost a name: {error}", self.name));
            }
        }
        Ok(())
    }

    fn is_taken(&self, was: &str) -> anyhow::Error {
        let text = format!("failed to move {was:?} to hostNS: file exists");
        let name = &self.name;
        let details = format!("the node has another interface {name:?}: rename that one");
        Code::TryAgain.err(text).details(details).into()
    }
}

/// Returns a device by its alias, as the Go plugin does.
fn give_back_unnoted(owner: &Attachment, netns: Option<&NetNs>, hint: &Hint) -> Result<()> {
    let host = Netlink::open()?;
    if let Some(netns) = netns {
        let pod = Netlink::open_in(netns)?;
        let devices = pod.list_devices()?;
        if let Some(device) = hint.pick_in_pod(&devices, owner.ifname.as_str()) {
            return Origin::unnoted(&host, device)?.move_home(&host, &pod, device);
        }
        return Ok(());
    }
    let devices = host.list_devices()?;
    match hint.pick_returned(&devices, owner.ifname.as_str()) {
        Some(device) => Origin::unnoted(&host, device)?.rename(&host, device),
        None => Ok(()),
    }
}

impl Origin {
    fn unnoted(host: &Netlink, device: &Device) -> Result<Self> {
        let mut altnames = device.altnames.clone();
        let mut failed = None;
        // It is unknown which of them the pod has added: only those that another link has are
        // dropped.
        altnames.retain(|it| match host.find_link(it) {
            Ok(other) => other.is_none_or(|other| other.index == device.link.index),
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        match failed {
            Some(error) => Err(error).context("look for alternative names"),
            None => Ok(Self {
                name: device.link.alias.clone().unwrap_or_default(),
                altnames,
                ..Self::default()
            }),
        }
    }
}

impl Hint {
    /// The device in a pod: one with the name of the configuration in its alias, or the one that is
    /// called `ifname`.
    fn pick_in_pod<'a>(&self, devices: &'a [Device], ifname: &str) -> Option<&'a Device> {
        let mut candidates = devices.iter().filter(|it| is_from_outside(it));
        candidates
            .clone()
            .find(|it| self.fits(it))
            .or_else(|| candidates.find(|it| it.link.name == ifname))
    }

    /// The device on the node, where the kernel has put it under the name `ifname` or `dev` with its
    /// index (`default_device_exit_net`, net/core/dev.c).
    fn pick_returned<'a>(&self, devices: &'a [Device], ifname: &str) -> Option<&'a Device> {
        devices.iter().find(|it| {
            let name = &it.link.name;
            let is_returned = name == ifname || name.starts_with("dev");
            let own = alias_as_name(it);
            let is_meant = self.fits(it) || own.is_some() && self.present == *name;
            it.is_hardware() && !it.link.up && is_returned && own != Some(name) && is_meant
        })
    }

    fn fits(&self, device: &Device) -> bool {
        let has_name = !self.name.is_empty() && device.link.alias.as_ref() == Some(&self.name);
        let has_address = self.address.as_ref() == Some(&device.address);
        alias_as_name(device).is_some() && (has_name || has_address)
    }
}

/// The alias, if it is a valid name of an interface.
fn alias_as_name(device: &Device) -> Option<&String> {
    let alias = device.link.alias.as_ref()?;
    IfName::parse(alias).is_ok().then_some(alias)
}

/// Whether the alias has the name on the node, and the link came from there. A link that the pod
/// made could lead into the pod, so it must not move to the node.
fn is_from_outside(device: &Device) -> bool {
    let link = &device.link;
    let leads_inside = link.link.is_some() && link.link_netnsid.is_none() || link.is_kind("tun");
    alias_as_name(device).is_some() && !leads_inside && !device.loopback
}

#[cfg(test)]
mod tests;
