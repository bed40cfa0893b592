//! Which containers are attached to a network: those in the cache of attachments, and those whose
//! veth pair is there although the cache does not have them, as of a runtime that keeps its cache
//! elsewhere.

use anyhow::Result;
use cni::conf::ValidAttachment;
use networks::{Cache, CachedAttachment};

use crate::pods;
use crate::unknown_owners;

/// The attachments to a network.
#[derive(Debug, Default)]
pub struct Attached {
    /// Those in the cache whose network namespace exists, as far as the cache has its path.
    pub alive: Vec<CachedAttachment>,
    /// Those in the cache whose network namespace is gone.
    pub gone: Vec<CachedAttachment>,
    /// Those that only their interface on the node shows.
    pub unknown: Vec<ValidAttachment>,
    /// Files of the cache that may be of an attachment to the network.
    pub unreadable: Vec<String>,
}

impl Attached {
    /// The attachments to `network`.
    ///
    /// # Errors
    /// The cache or the links of the node cannot be read.
    pub fn to(network: &str, cache: &Cache) -> Result<Self> {
        let contents = cache.of_network(network)?;
        let unreadable = contents.unidentified.iter();
        let unreadable = unreadable.map(|it| it.path.display().to_string()).collect();
        let (gone, alive): (Vec<_>, Vec<_>) = contents
            .attachments
            .into_iter()
            .partition(|it| it.netns_path().is_some_and(|path| pods::is_gone(&path)));
        let mut unknown = unknown_owners::with_veth(network)?;
        let known =
            |it: &ValidAttachment| alive.iter().chain(&gone).any(|known| known.owner() == *it);
        unknown.retain(|it| !known(it));
        Ok(Self {
            alive,
            gone,
            unknown,
            unreadable,
        })
    }

    /// Those that use the network, as Docker lists them in an error.
    pub fn users(&self) -> Vec<String> {
        let alive = self
            .alive
            .iter()
            .map(|it| endpoint(&name(it), &it.container_id));
        let unknown = self
            .unknown
            .iter()
            .map(|it| endpoint(short(&it.container_id), &it.container_id));
        let unreadable = self.unreadable.iter().map(|it| format!("file:{it:?}"));
        alive.chain(unknown).chain(unreadable).collect()
    }
}

fn endpoint(name: &str, id: &str) -> String {
    format!("name:{name:?} id:{id:?}")
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The container's name, if its runtime passes it to the plugins, as podman, containerd's CRI and
/// CRI-O do; else the beginning of its id.
pub fn name(attachment: &CachedAttachment) -> String {
    let args = attachment.cni_args.iter().flatten();
    let mut names = args
        .filter(|(key, _)| key == "K8S_POD_NAME")
        .map(|(_, name)| name.clone());
    names
        .next()
        .unwrap_or_else(|| short(&attachment.container_id).to_owned())
}
