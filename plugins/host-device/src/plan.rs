//! Decides from the keys which device is selected. Pure: no system calls.

use std::path::{Component, Path, PathBuf};

use cni::faults::{Checks, Fault, Faults};
use netlink::HardwareAddress;
use wiring::device::Hint;

use crate::conf::Conf;

/// The error for a configuration that selects no device.
pub const NO_DEVICE: &str = r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#;

/// A configuration without contradictions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What selects the device; `None` if only its place on a bus does.
    pub selected: Option<Selected>,
    /// Its place on a bus, if the configuration or the runtime names one.
    pub bus: Option<Bus>,
    /// The key `DPDKMode`.
    pub dpdk_mode: bool,
}

/// What selects a device before its place on a bus.
#[derive(Clone, Debug, PartialEq)]
pub enum Selected {
    /// The name of its interface.
    Name(String),
    /// Its hardware address.
    Address(HardwareAddress),
    /// Its directory below `/sys/devices`.
    Path(PathBuf),
}

/// The place of a device on a bus.
#[derive(Clone, Debug, PartialEq)]
pub enum Bus {
    /// An address on the PCI bus.
    Pci(String),
    /// What the runtime passes: an address on the PCI bus, or a name on the auxiliary bus.
    Runtime(String),
}

impl Plan {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// Code 7, each fault with its key; [`NO_DEVICE`].
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let selected = checks.take(selected(conf));
        let bus = checks.take(bus(conf));
        if let (Some(None), Some(None)) = (&selected, &bus) {
            checks.add(Fault::new("", NO_DEVICE));
        }
        checks.finish(|| {
            Some(Self {
                selected: selected?,
                bus: bus?,
                dpdk_mode: conf.dpdk_mode,
            })
        })
    }
}

impl Conf {
    /// What DEL knows of the device of a pod without a note. Invalid values are left out.
    pub fn hint(&self) -> Hint {
        Hint {
            name: self.device.clone(),
            address: self.hwaddr.parse().ok(),
            ..Hint::default()
        }
    }
}

fn selected(conf: &Conf) -> Result<Option<Selected>, Fault> {
    let (name, address, path) = (&conf.device, &conf.hwaddr, &conf.kernelpath);
    if !name.is_empty() {
        return Ok(Some(Selected::Name(name.clone())));
    }
    if !address.is_empty() {
        let parsed = address.parse().map_err(|error| {
            let msg = format!(
                "failed to find host device: failed to parse MAC address {address:?}: {error}"
            );
            Fault::new("hwaddr", msg)
        })?;
        return Ok(Some(Selected::Address(parsed)));
    }
    if path.is_empty() {
        Ok(None)
    } else {
        kernel_path(path).map(|path| Some(Selected::Path(path)))
    }
}

fn kernel_path(text: &str) -> Result<PathBuf, Fault> {
    let path = Path::new(text);
    let leads_out = path.components().any(|it| it == Component::ParentDir);
    if !text.starts_with("/sys/devices/") || leads_out {
        let msg = format!(
            "failed to find host device: kernel device path {text:?} must be absolute and begin with /sys/devices/"
        );
        return Err(Fault::new("kernelpath", msg));
    }
    Ok(path.to_owned())
}

fn bus(conf: &Conf) -> Result<Option<Bus>, Fault> {
    let (runtime, own) = (&conf.runtime_config.device_id, &conf.pci_bus_id);
    if !runtime.is_empty() {
        let id = file_name("runtimeConfig.deviceID", runtime)?;
        return Ok(Some(Bus::Runtime(id)));
    }
    if own.is_empty() {
        Ok(None)
    } else {
        Ok(Some(Bus::Pci(file_name("pciBusID", own)?)))
    }
}

/// `id`, which is the name of a directory of sysfs.
fn file_name(key: &str, id: &str) -> Result<String, Fault> {
    if id.contains(['/', '\0']) || id == "." || id == ".." {
        let msg = format!("{key}: {id:?} is no address of a device on a bus");
        return Err(Fault::new(key, msg));
    }
    Ok(id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl Fn(&mut Conf)) -> Result<Plan, String> {
        let mut conf = Conf::default();
        change(&mut conf);
        Plan::new(&conf).map_err(|faults| faults.first().error.msg.clone())
    }

    #[test]
    fn one_selector_is_needed() {
        assert_eq!(plan(|_| {}).unwrap_err(), NO_DEVICE);
        assert_eq!(plan(|it| it.dpdk_mode = true).unwrap_err(), NO_DEVICE);
    }

    #[test]
    fn the_first_selector_counts() {
        let all = |it: &mut Conf| {
            it.device = "eth1".into();
            it.hwaddr = "02:00:00:00:00:01".into();
            it.kernelpath = "/sys/devices/x".into();
            it.pci_bus_id = "0000:00:01.0".into();
        };
        let selected = plan(all).unwrap().selected;
        assert_eq!(selected, Some(Selected::Name("eth1".into())));
        let without_name = plan(|it| {
            all(it);
            it.device.clear();
        });
        let address = "02:00:00:00:00:01".parse().unwrap();
        assert_eq!(
            without_name.unwrap().selected,
            Some(Selected::Address(address))
        );
        let path = plan(|it| it.kernelpath = "/sys/devices/pci0000:00".into());
        let expected = Some(Selected::Path("/sys/devices/pci0000:00".into()));
        assert_eq!(path.unwrap().selected, expected);
    }

    #[test]
    fn the_bus_is_known_beside_another_selector() {
        let plan = plan(|it| {
            it.device = "eth1".into();
            it.pci_bus_id = "0000:00:01.0".into();
        });
        assert_eq!(plan.unwrap().bus, Some(Bus::Pci("0000:00:01.0".into())));
    }

    #[test]
    fn the_runtime_replaces_the_bus_address() {
        let plan = plan(|it| {
            it.pci_bus_id = "0000:00:01.0".into();
            it.runtime_config.device_id = "mlx5_core.sf.4".into();
        });
        let expected = Some(Bus::Runtime("mlx5_core.sf.4".into()));
        assert_eq!(plan.unwrap().bus, expected);
    }

    #[test]
    fn values_that_select_nothing_are_refused() {
        let address = plan(|it| it.hwaddr = "x".into()).unwrap_err();
        assert!(
            address.ends_with(r#"failed to parse MAC address "x": address x: invalid MAC address"#)
        );
        for text in [
            "sys/devices/x",
            "/sys/class/net/x",
            "/sys/devices/../../etc",
            "/sys/devices",
        ] {
            let msg = plan(|it| it.kernelpath = text.into()).unwrap_err();
            assert!(
                msg.ends_with("must be absolute and begin with /sys/devices/"),
                "{msg}"
            );
        }
        for text in ["..", "a/b", "/"] {
            assert!(plan(|it| it.pci_bus_id = text.into()).is_err(), "{text}");
            assert!(
                plan(|it| it.runtime_config.device_id = text.into()).is_err(),
                "{text}"
            );
        }
    }
}
