//! Decides from the keys what to do. Pure: no system calls.

use std::ops::RangeInclusive;

use cni::faults::{Checks, Fault, Faults};
use netlink::{Mac, TapSpec};
use wiring::mac;

use crate::conf::Conf;

/// The MTU of a tap device: from `ETH_MIN_MTU` to what leaves room for the Ethernet header
/// (`tun_net_initialize`, drivers/net/tun.c).
const MTU: RangeInclusive<i64> = 68..=65521;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The MTU; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// The MAC that was requested.
    pub mac: Option<Mac>,
    /// A bridge in the pod.
    pub bridge: Option<String>,
    /// The SELinux label.
    pub label: Option<String>,
    multi_queue: bool,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `args_mac` is `MAC` of CNI_ARGS.
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, args_mac: Option<String>) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let action = |text: &str| format!("invalid args {text} for MAC addr");
        let (runtime, args) = (&conf.runtime_config, &conf.args);
        let mac = mac::requested(runtime, args, args_mac, &conf.mac, action);
        let mac = checks.take(mac);
        let mtu = checks.take(mtu(conf.mtu));
        let label = checks.take(label(&conf.selinux_context));
        let text = |text: &String| Some(text.clone()).filter(|it| !it.is_empty());
        checks.finish(|| {
            Some(Self {
                mtu: mtu?,
                mac: mac?,
                bridge: text(&conf.bridge),
                label: label?,
                multi_queue: conf.multi_queue,
                owner: conf.owner,
                group: conf.group,
            })
        })
    }

    /// The device to create as `name`. Its headers are those of the Go plugin: of ip(8), unless it
    /// has both an owner and a group. A program chooses its own when it opens the device.
    pub fn spec(&self, name: &str) -> TapSpec {
        let is_owned = self.owner.is_some() && self.group.is_some() && self.label.is_none();
        TapSpec {
            name: name.to_owned(),
            multi_queue: self.multi_queue,
            owner: self.owner,
            group: self.group,
            packet_information: is_owned && !self.multi_queue,
            virtio_header: is_owned,
        }
    }
}

fn mtu(mtu: i64) -> Result<Option<u32>, Fault> {
    match u32::try_from(mtu) {
        Ok(0) => Ok(None),
        Ok(bytes) if MTU.contains(&mtu) => Ok(Some(bytes)),
        _ => {
            let (least, most) = (MTU.start(), MTU.end());
            let msg = format!("invalid MTU {mtu}, must be [{least}, {most}]");
            Err(Fault::new("mtu", msg))
        }
    }
}

fn label(text: &str) -> Result<Option<String>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    // user:role:type, and a level on most systems.
    if text.split(':').count() < 3 || text.contains(['\0', '\n']) {
        let msg = format!(
            "selinuxContext: {text:?} is no SELinux context, such as system_u:object_r:svirt_t:s0"
        );
        return Err(Fault::new("selinuxContext", msg));
    }
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl Fn(&mut Conf)) -> Result<Plan, String> {
        let mut conf = Conf::default();
        change(&mut conf);
        Plan::new(&conf, None).map_err(|faults| faults.first().error.msg.clone())
    }

    #[test]
    fn an_mtu_is_none_or_one_that_a_tap_device_can_have() {
        for (value, expected) in [(0, None), (68, Some(68)), (65521, Some(65521))] {
            assert_eq!(plan(|it| it.mtu = value).unwrap().mtu, expected);
        }
        for value in [-1, 67, 65522, i64::MAX] {
            let msg = plan(|it| it.mtu = value).unwrap_err();
            assert_eq!(msg, format!("invalid MTU {value}, must be [68, 65521]"));
        }
    }

    #[test]
    fn the_runtimes_mac_counts_before_the_arguments_and_the_key() {
        let mut conf = Conf {
            mac: "02:00:00:00:00:01".into(),
            ..Conf::default()
        };
        let mac = |conf: &Conf, args: Option<&str>| {
            let plan = Plan::new(conf, args.map(str::to_owned)).unwrap();
            plan.mac.unwrap().to_string()
        };
        assert_eq!(mac(&conf, None), "02:00:00:00:00:01");
        assert_eq!(mac(&conf, Some("02:00:00:00:00:02")), "02:00:00:00:00:02");
        conf.runtime_config.mac = "02:00:00:00:00:03".into();
        assert_eq!(mac(&conf, Some("02:00:00:00:00:02")), "02:00:00:00:00:03");
        let msg = plan(|it| it.mac = "x".into()).unwrap_err();
        assert_eq!(
            msg,
            "invalid args x for MAC addr: address x: invalid MAC address"
        );
    }

    #[test]
    fn headers_are_those_of_the_go_plugin() {
        let headers = |change: &dyn Fn(&mut Conf)| {
            let spec = plan(change).unwrap().spec("tap0");
            (spec.packet_information, spec.virtio_header)
        };
        assert_eq!(headers(&|_| {}), (false, false));
        assert_eq!(headers(&|it| it.owner = Some(0)), (false, false));
        let both = |it: &mut Conf| {
            it.owner = Some(0);
            it.group = Some(0);
        };
        assert_eq!(headers(&both), (true, true));
        let queues = |it: &mut Conf| {
            both(it);
            it.multi_queue = true;
        };
        assert_eq!(headers(&queues), (false, true));
    }

    #[test]
    fn a_label_has_three_parts_or_more() {
        let context = "system_u:object_r:svirt_t:s0:c1,c2";
        let label = |text: &str| plan(|it| it.selinux_context = text.into()).map(|it| it.label);
        assert_eq!(label(context), Ok(Some(context.into())));
        assert_eq!(label(""), Ok(None));
        assert!(label("svirt_t").is_err() && label("a:b:c\nd").is_err());
    }
}
