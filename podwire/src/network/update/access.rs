//! Access to and from the containers: `--internal` and the gateway modes
//! of a network that containers are attached to.

use networks::CachedAttachment;
use serde_json::{Value, json};

use super::{Changes, Edit};
use crate::network::attached::name;
use crate::network::conflist::Access;
use crate::network::options::boolean;
use crate::run::ports;

const MASQUERADE_OPTION: &str = "com.docker.network.bridge.enable_ip_masquerade";
const ISOLATED: &str = "isolated";

impl Edit<'_> {
    /// Changes the keys; adds what cannot be to `faults`.
    pub fn set_access(
        &mut self,
        changes: &Changes<'_>,
        families: [bool; 2],
        attached: &[CachedAttachment],
        faults: &mut Vec<String>,
    ) {
        if !changes.touch_access() {
            return;
        }
        let present = self.present_access(families);
        let access = Access {
            internal: changes.internal.unwrap_or(present.internal),
            masquerade: changes.masquerade.unwrap_or(present.masquerade),
            modes: [0, 1].map(|it| changes.modes[it].clone().or(present.modes[it].clone())),
            ..present.clone()
        };
        faults.extend(access_faults(changes, &present, &access, attached));
        if access.internal != present.internal {
            self.done.push(format!("internal: {}", access.internal));
            self.set_default_routes(families, !access.internal);
        }
        for (family, mode) in ["IPv4", "IPv6"].into_iter().zip(&changes.modes) {
            if let Some(mode) = mode {
                self.done.push(format!("gateway mode of {family}: {mode}"));
            }
        }
        let access = Access {
            // The modes of an internal network have no meaning, and come back with the way out.
            modes: if access.internal {
                [None, None]
            } else {
                access.modes.clone()
            },
            ..access
        };
        if let Some(plugin) = self.plugin() {
            access.write(plugin);
        }
        self.set_portmap(&access);
    }

    fn present_access(&self, families: [bool; 2]) -> Access {
        let is = |key: &str| self.plugin_key(key).and_then(Value::as_bool);
        let internal = is("internal").unwrap_or_default();
        let chosen = self.listed.record.options.get(MASQUERADE_OPTION);
        let chosen = chosen.and_then(|it| boolean(it).ok()).unwrap_or(true);
        let mode = |key: &str| Some(self.plugin_key(key)?.as_str()?.to_owned());
        Access {
            internal,
            has_gateway: self.plugin_key("mode").and_then(Value::as_str) != Some("l2"),
            masquerade: if internal {
                chosen
            } else {
                is("ipMasq").unwrap_or_default()
            },
            families,
            modes: Access::MODES.map(mode),
        }
    }

    /// The default routes of containers that are attached from now on.
    fn set_default_routes(&mut self, families: [bool; 2], wanted: bool) {
        let ipam = self.plugin().and_then(|it| it.get_mut("ipam"));
        let Some(ipam) = ipam.and_then(Value::as_object_mut) else {
            return;
        };
        let routes = ipam.entry("routes").or_insert_with(|| json!([]));
        let Some(routes) = routes.as_array_mut() else {
            return;
        };
        routes.retain(|it| !DEFAULT.iter().any(|dst| it["dst"] == **dst));
        for (dst, has_family) in DEFAULT.into_iter().zip(families) {
            if wanted && has_family {
                routes.push(json!({"dst": dst}));
            }
        }
        if routes.is_empty() {
            ipam.remove("routes");
        }
    }

    /// portmap publishes ports, but where they are opened. On an internal network it stays for the
    /// containers that have published some.
    fn set_portmap(&mut self, access: &Access) {
        let plugins = self
            .document
            .get_mut("plugins")
            .and_then(Value::as_array_mut);
        let Some(plugins) = plugins else { return };
        let is_portmap = |it: &Value| it["type"] == "portmap";
        if access.is_routed() {
            plugins.retain(|it| !is_portmap(it));
        } else if !access.internal && !plugins.iter().any(is_portmap) {
            plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
        }
    }
}

const DEFAULT: [&str; 2] = ["0.0.0.0/0", "::/0"];

fn access_faults(
    changes: &Changes<'_>,
    present: &Access,
    wanted: &Access,
    attached: &[CachedAttachment],
) -> Vec<String> {
    let mut faults = Vec::new();
    let is_isolated = |it: &Access| it.modes.iter().flatten().any(|it| it == ISOLATED);
    if is_isolated(wanted) && changes.touch_access() {
        faults.push(
            "the gateway mode isolated belongs to create: whether the node has an address in the network \
             cannot change under its containers"
                .to_owned(),
        );
    }
    if wanted.internal && changes.modes.iter().any(Option::is_some) {
        faults.push("an internal network has no gateway mode".to_owned());
    }
    for (family, (mode, has_family)) in ["IPv4", "IPv6"]
        .into_iter()
        .zip(changes.modes.iter().zip(wanted.families))
    {
        if mode.is_some() && !has_family {
            faults.push(format!("the network has no {family} for a gateway mode"));
        }
    }
    let routed = |it: &Access| [0, 1].map(|at| it.modes[at].as_deref() == Some("routed"));
    let of_families = |it: [bool; 2]| {
        (0..2)
            .filter(|at| wanted.families[*at])
            .map(move |at| it[at])
    };
    let mut modes: Vec<_> = of_families(routed(wanted)).collect();
    modes.dedup();
    if modes.len() > 1 {
        faults.push("the gateway mode routed is for both families or for none".to_owned());
    }
    let publishes = attached.iter().filter(|it| !ports::of(it).is_empty());
    let publishes: Vec<_> = publishes.map(name).collect();
    if present.is_routed() != wanted.is_routed() && !publishes.is_empty() {
        faults.push(format!(
            "the gateway mode cannot become routed, or another one, while containers publish ports, \
             which it opens instead: {}",
            publishes.join(", ")
        ));
    }
    faults
}
