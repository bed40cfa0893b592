//! The request of a runtime: one type for each verb, so that a handler cannot use what its
//! verb does not have.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Result;

use crate::conf::{NetConf, ValidAttachment};
use crate::env::{ContainerId, Environment, IfName, NetnsPath, parse_args};
use crate::error::{Code, Error};
use crate::linked::Linked;
use crate::names;
use crate::result::AddResult;
use crate::version::Version;

/// What all verbs have in common.
#[derive(Clone, Debug)]
pub struct Call {
    /// The type of the plugin that is called.
    pub plugin: &'static str,
    /// The network's `name`.
    pub network: String,
    /// The configuration's `cniVersion`.
    pub version: Version,
    /// The keys that every configuration has.
    pub net: NetConf,
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// `CNI_ARGS`, unparsed.
    pub args: String,
    /// Whether another plugin of podwire calls this one instead of executing it.
    pub is_linked: bool,
    /// All variables, and standard input to the byte, for a delegate.
    pub(crate) env: Rc<Environment>,
    pub(crate) stdin: Rc<[u8]>,
    /// The delegates to call instead of executing them.
    pub(crate) linked: &'static [Linked],
}

impl Call {
    /// `prevResult`, if there is one.
    ///
    /// # Errors
    /// `could not parse prevResult: …`.
    pub fn prev_result(&self) -> Result<Option<AddResult>> {
        let document = self.net.prev_result.as_ref();
        document
            .map(|prev| AddResult::decode(&prev.0, self.version))
            .transpose()
    }

    /// `prevResult`, which the plugin cannot do without.
    ///
    /// # Errors
    /// As [`Self::prev_result`]; code 7 with the text `missing` where there is none: the Go
    /// plugins have different texts.
    pub fn required_prev_result(&self, missing: &str) -> Result<AddResult> {
        let found = self.prev_result()?;
        Ok(found.ok_or_else(|| Code::InvalidConfig.err(missing))?)
    }

    /// `prevResult` as a hint for DEL: one that cannot be read is none.
    pub fn prev_result_hint(&self) -> Option<AddResult> {
        self.prev_result().ok()?
    }

    /// The values of `known` in `CNI_ARGS`; see [`parse_args`].
    pub fn args<const N: usize>(&self, known: [&str; N]) -> Result<[Option<String>; N], Error> {
        parse_args(&self.args, known)
    }

    /// Standard input to the byte, to pass it on.
    pub fn stdin(&self) -> &[u8] {
        &self.stdin
    }

    /// Whether an IPAM plugin assigns addresses. The calls of [`crate::delegate`] need no
    /// such test: without `ipam` they do nothing.
    pub fn has_ipam(&self) -> bool {
        !self.net.ipam.plugin.is_empty()
    }
}

/// One interface of one container on one network. The names of all objects are derived
/// from it, so that DEL and GC find what a killed ADD has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The container.
    pub container_id: ContainerId,
    /// The interface in the container.
    pub ifname: IfName,
}

impl Attachment {
    /// The attachment with these names; `None` where one of them is not valid.
    pub fn parse(network: &str, container_id: &str, ifname: &str) -> Option<Self> {
        Some(Self {
            network: network.to_owned(),
            container_id: ContainerId::parse(container_id).ok()?,
            ifname: IfName::parse(ifname).ok()?,
        })
    }

    /// The name of the host end of its veth pair: `veth` and 8 hex digits. `attempt` is 0,
    /// or higher if another attachment already has that name.
    pub fn host_veth(&self, attempt: u32) -> String {
        names::prefixed(12, "veth", &format!("{self}/{attempt}"))
    }

    /// The alias (IFLA_IFALIAS) of a device that this attachment owns: readable if it fits,
    /// hashed if the names are too long.
    pub fn alias(&self) -> String {
        let (network, id, ifname) = (&self.network, &self.container_id, &self.ifname);
        format!(
            "{}{}",
            alias_prefix(network),
            names::short(&format!("{id}/{ifname}"))
        )
    }
}

/// The beginning of the aliases of all attachments of `network`.
pub fn alias_prefix(network: &str) -> String {
    format!("podwire:{}/", names::short(network))
}

impl fmt::Display for Attachment {
    /// `network/container/interface`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}

/// Attach a container.
#[derive(Clone, Debug)]
pub struct Add<C> {
    /// What all verbs have in common.
    pub call: Call,
    /// The plugin's own keys.
    pub conf: C,
    /// The interface to attach.
    pub attachment: Attachment,
    /// The pod's namespace.
    pub netns: NetnsPath,
}

/// Detach a container. Any part of it may be gone.
#[derive(Clone, Debug)]
pub struct Del<C> {
    /// What all verbs have in common.
    pub call: Call,
    /// The plugin's own keys; a key that cannot be read has its default.
    pub conf: C,
    /// The interface to detach.
    pub attachment: Attachment,
    /// The pod's namespace, if the runtime still knows it.
    pub netns: Option<NetnsPath>,
}

/// Check that an attachment is as ADD left it.
#[derive(Clone, Debug)]
pub struct Check<C> {
    /// What all verbs have in common.
    pub call: Call,
    /// The plugin's own keys.
    pub conf: C,
    /// The interface to check.
    pub attachment: Attachment,
    /// The pod's namespace.
    pub netns: NetnsPath,
}

impl<C> Check<C> {
    /// `prevResult`, which CHECK compares with the kernel.
    ///
    /// # Errors
    /// As [`Call::required_prev_result`]: `Required prevResult missing`.
    pub fn prev_result(&self) -> Result<AddResult> {
        self.call
            .required_prev_result("Required prevResult missing")
    }
}

/// Remove what belongs to no valid attachment.
#[derive(Clone, Debug)]
pub struct Gc<C> {
    /// What all verbs have in common.
    pub call: Call,
    /// The plugin's own keys; a key that cannot be read has its default.
    pub conf: C,
    /// The attachments in use.
    pub valid: Vec<ValidAttachment>,
}

/// Report whether an ADD could succeed now.
#[derive(Clone, Debug)]
pub struct Status<C> {
    /// What all verbs have in common.
    pub call: Call,
    /// The plugin's own keys.
    pub conf: C,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_veth_follows_from_the_attachment() {
        let attachment = Attachment {
            network: "mynet".into(),
            container_id: ContainerId::parse("aaaabbbbccccdddd").unwrap(),
            ifname: IfName::parse("eth0").unwrap(),
        };
        let name = attachment.host_veth(0);
        assert_eq!(name.len(), 12);
        assert!(name.starts_with("veth") && name != attachment.host_veth(1));
        assert_eq!(name, attachment.clone().host_veth(0));
    }

    #[test]
    fn an_alias_names_its_owner_and_fits_whatever_the_names() {
        let attachment = |network: &str, id: &str| Attachment {
            network: network.into(),
            container_id: ContainerId::parse(id).unwrap(),
            ifname: IfName::parse("eth0").unwrap(),
        };
        assert_eq!(attachment("mynet", "a").alias(), "podwire:mynet/a/eth0");
        let long = attachment(&"n".repeat(300), &"c".repeat(300));
        assert!(long.alias().len() < 255);
        assert!(long.alias().starts_with(&alias_prefix(&long.network)));
        assert_ne!(
            long.alias(),
            attachment(&long.network, &"d".repeat(300)).alias()
        );
    }
}
