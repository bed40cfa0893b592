//! Finds the device on the node: its place in sysfs, and its interface.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use netlink::{Device, HardwareAddress, Netlink};

use crate::plan::{Bus, Plan, Selected};

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";

/// Drivers that leave a device to a program (DPDK).
const USERSPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// The directory of a device in sysfs.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    Pci(String),
    Auxiliary(String),
}

/// A device of the node.
#[derive(Debug)]
pub struct Found {
    /// Its interface; `None` if a program uses it.
    pub device: Option<Device>,
    /// Its address on the PCI bus; empty if it has none.
    pub pci: String,
}

/// Finds the device that `plan` selects.
///
/// # Errors
/// `failed to find host device: …`, `error with host device: …`.
pub fn device(host: &Netlink, plan: &Plan) -> Result<Found> {
    let place = plan.bus.as_ref().map(place).transpose()?;
    let pci = match &place {
        Some(Place::Pci(id)) => id.clone(),
        _ => String::new(),
    };
    if is_userspace(plan, &pci)? {
        return Ok(Found { device: None, pci });
    }
    let device = interface(host, plan.selected.as_ref(), place.as_ref());
    let device = device.context("failed to find host device")?;
    let pci = if pci.is_empty() && is_pci(&device.bus_id) {
        device.bus_id.clone()
    } else {
        pci
    };
    let device = Some(device);
    Ok(Found { device, pci })
}

/// Whether a program uses the device. False if the driver cannot be read: DEL must work when the
/// device is gone.
pub fn is_left_to_a_program(plan: &Plan) -> bool {
    match plan.bus.as_ref().map(place) {
        Some(Ok(Place::Pci(id))) => is_userspace(plan, &id).unwrap_or_default(),
        _ => plan.dpdk_mode,
    }
}

/// The present name on the node of the interface at the place of the device; empty if the
/// configuration names no place, or no interface is there.
pub fn present_name(plan: &Plan) -> String {
    let directory = match (&plan.selected, &plan.bus) {
        (Some(Selected::Path(path)), _) => Ok(path.join("net")),
        (None, Some(bus)) => place(bus).and_then(|it| directory(&it)),
        _ => return String::new(),
    };
    directory.and_then(|it| first_in(&it)).unwrap_or_default()
}

fn place(bus: &Bus) -> Result<Place> {
    match bus {
        Bus::Pci(id) => Ok(Place::Pci(id.clone())),
        Bus::Runtime(id) if Path::new(PCI).join(id).exists() => Ok(Place::Pci(id.clone())),
        Bus::Runtime(id) if Path::new(AUXILIARY).join(id).exists() => {
            Ok(Place::Auxiliary(id.clone()))
        }
        Bus::Runtime(id) => bail!("runtime config DeviceID {id} not found or unsupported"),
    }
}

fn is_userspace(plan: &Plan, pci: &str) -> Result<bool> {
    if pci.is_empty() {
        return Ok(plan.dpdk_mode);
    }
    let link = Path::new(PCI).join(pci).join("driver");
    let failed = |error: io::Error| {
        let (path, reason) = (link.display(), cni::reason(&error));
        anyhow!("error with host device: lstat {path}: {reason}")
    };
    let driver = fs::read_link(&link).map_err(failed)?;
    let name = driver.file_name().unwrap_or_default();
    Ok(USERSPACE_DRIVERS.iter().any(|it| name == *it))
}

fn interface(host: &Netlink, selected: Option<&Selected>, place: Option<&Place>) -> Result<Device> {
    match (selected, place) {
        (Some(Selected::Name(name)), _) => named(host, name),
        (Some(Selected::Address(address)), _) => with_address(host, address),
        (Some(Selected::Path(path)), _) => named(host, &first_in(&path.join("net"))?),
        (None, Some(place)) => named(host, &first_in(&directory(place)?)?),
        (None, None) => bail!(NOT_FOUND),
    }
}

const NOT_FOUND: &str = "failed to find physical interface";

fn named(host: &Netlink, name: &str) -> Result<Device> {
    host.find_device(name)?.context("Link not found")
}

/// The interface with this hardware address. A vlan or macvlan may have the address of its parent,
/// so hardware comes first.
fn with_address(host: &Netlink, address: &HardwareAddress) -> Result<Device> {
    let mut devices = host.list_devices()?;
    devices.retain(|it| it.address == *address);
    let hardware = devices.iter().position(Device::is_hardware);
    let chosen = hardware.unwrap_or_default();
    devices.into_iter().nth(chosen).context(NOT_FOUND)
}

/// The directory that has the interfaces of a device.
fn directory(place: &Place) -> Result<PathBuf> {
    let id = match place {
        Place::Auxiliary(id) => return Ok(Path::new(AUXILIARY).join(id).join("net")),
        Place::Pci(id) => id,
    };
    let device = Path::new(PCI).join(id);
    let own = device.join("net");
    if own.symlink_metadata().is_ok() {
        return Ok(own);
    }
    // The interface of a virtio device is one directory below: virtio is a bus of its own.
    let entries = names(&device).unwrap_or_default().into_iter();
    let virtio = entries.filter(|it| it.starts_with("virtio"));
    virtio
        .map(|it| device.join(it).join("net"))
        .find(|it| it.exists())
        .with_context(|| format!("no net directory under pci device {id}"))
}

/// The first name in a directory of interfaces.
fn first_in(directory: &Path) -> Result<String> {
    let path = directory.display();
    let names = names(directory).map_err(|error| {
        let reason = cni::reason(&error);
        anyhow!("failed to read directory {path}: {reason}")
    })?;
    // It is empty if a pod has the interface: sysfs shows only the interfaces of the node.
    let first = names.into_iter().next();
    first.with_context(|| format!("failed to find network device in path {path}"))
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether a name on a bus is an address on the PCI bus: `0000:00:1f.6`.
fn is_pci(name: &str) -> bool {
    let parts: Vec<_> = name.split([':', '.']).collect();
    let is_hex = |it: &&str| !it.is_empty() && it.bytes().all(|digit| digit.is_ascii_hexdigit());
    parts.len() == 4 && parts.iter().all(is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_on_the_pci_bus_is_known_by_its_form() {
        for name in ["0000:00:1f.6", "10000:e1:00.0"] {
            assert!(is_pci(name), "{name}");
        }
        for name in ["", "virtio1", "mlx5_core.sf.4", "1-1.2:1.0", "vmbus_0:1:2"] {
            assert!(!is_pci(name), "{name}");
        }
    }
}
