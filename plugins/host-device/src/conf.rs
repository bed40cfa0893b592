//! The keys of host-device. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;

/// The plugin's own keys. The first of `device`, `hwaddr`, `kernelpath` and the bus address that is
/// set selects the device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The name of the interface on the node.
    pub device: String,
    /// The hardware address of the interface.
    pub hwaddr: String,
    /// The directory of the device below `/sys/devices`.
    pub kernelpath: String,
    /// The address of the device on the PCI bus: `0000:00:1f.6`.
    #[serde(rename = "pciBusID")]
    pub pci_bus_id: String,
    /// The device has no interface, as its driver belongs to a program (DPDK). For a device on the
    /// PCI bus, the driver decides that, and this key is ignored.
    #[serde(rename = "DPDKMode")]
    pub dpdk_mode: bool,
    /// What the runtime requests for this pod.
    pub runtime_config: RuntimeConfig,
}

/// `runtimeConfig`, where libcni passes the declared capabilities.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// Capability `deviceID`: the address of the device on the PCI bus, or its name on the auxiliary
    /// bus. It replaces `pciBusID`.
    #[serde(rename = "deviceID")]
    pub device_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case() {
        let conf: Conf = read(
            r#"{"Device": "eth1", "HWADDR": "x", "kernelPath": "/sys/devices/x", "pcibusid": "y",
                "dpdkMode": true, "RuntimeConfig": {"deviceId": "z"}}"#,
        )
        .unwrap();
        assert_eq!(conf.device, "eth1");
        assert_eq!((conf.hwaddr.as_str(), conf.pci_bus_id.as_str()), ("x", "y"));
        assert_eq!(conf.kernelpath, "/sys/devices/x");
        assert!(conf.dpdk_mode);
        assert_eq!(conf.runtime_config.device_id, "z");
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"device": 1}"#,
            r#"{"pciBusID": ["0000:00:00.0"]}"#,
            r#"{"DPDKMode": "yes"}"#,
            r#"{"runtimeConfig": {"deviceID": 7}}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
