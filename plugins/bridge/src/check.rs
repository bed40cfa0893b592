//! CHECK: whether an attachment is as its result says.

use anyhow::{Result, bail};
use cni::request::Check;
use cni::result::AddResult;
use netns::NetNs;
use wiring::check;

use crate::conf::Conf;

/// Compares the kernel with `prevResult`, and returns it.
pub fn attachment(request: &Check<Conf>, netns: &NetNs) -> Result<AddResult> {
    let previous = check::previous(request)?;
    let port = check::port(request, &request.conf.bridge, netns, &previous)?;
    if request.conf.promisc_mode && !port.bridge.promisc {
        bail!(
            "Bridge interface {} configured Promisc Mode true, current state false",
            port.bridge.name
        );
    }
    Ok(previous)
}
