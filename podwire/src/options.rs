//! Options that several commands have, with their variables and defaults, which are cnitool's.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, CommandFactory};
use cni::env::{ContainerId, IfName};
use cni::names;
use networks::{Attachment, Cache};
use serde_json::{Map, Value};
use survey::{Sources, Survey};

use crate::command_line::CommandLine;

/// Where the configurations are.
#[derive(Debug, Args)]
pub struct ConfDir {
    /// Where the configurations are
    #[arg(long, value_name = "DIR", env = "NETCONFPATH", hide_env_values = true)]
    #[arg(default_value = "/etc/cni/net.d", value_parser = path_or("/etc/cni/net.d"))]
    pub conf_dir: PathBuf,
}

/// Where the plugins are.
#[derive(Debug, Args)]
pub struct PluginDirs {
    /// Where the plugins are, separated by colons
    #[arg(long, value_name = "DIRS", env = "CNI_PATH", hide_env_values = true)]
    #[arg(default_value = "/opt/cni/bin", value_parser = path_or("/opt/cni/bin"))]
    plugin_dir: PathBuf,
}

/// Where the cache is.
#[derive(Debug, Args)]
pub struct CacheDir {
    /// Where the cache of attachments is
    #[arg(long, value_name = "DIR")]
    #[arg(default_value = "/var/lib/cni", value_parser = path_or("/var/lib/cni"))]
    cache_dir: PathBuf,
}

/// Where a survey of the node reads.
#[derive(Debug, Args)]
pub struct SurveyDirs {
    #[command(flatten)]
    conf: ConfDir,
    #[command(flatten)]
    pub cache: CacheDir,
}

/// Where everything about attachments is.
#[derive(Debug, Args)]
pub struct Directories {
    #[command(flatten)]
    pub conf: ConfDir,
    #[command(flatten)]
    pub plugins: PluginDirs,
    #[command(flatten)]
    pub cache: CacheDir,
}

/// The interface of an attachment, and where everything about it is.
#[derive(Debug, Args)]
pub struct AttachmentOptions {
    /// Name of the interface in the container
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "CNI_IFNAME",
        hide_env_values = true
    )]
    #[arg(default_value = "eth0")]
    ifname: String,
    /// The container's id [default: cnitool- and 20 hex digits derived from the path of NETNS]
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
    #[command(flatten)]
    pub dirs: Directories,
}

/// An attachment that exists, at least in the cache.
#[derive(Debug, Args)]
pub struct Existing {
    /// Name of the network
    pub network: String,
    /// Path of the network namespace; it may be gone, and is not needed with --container-id
    #[arg(required_unless_present = "container_id")]
    netns: Option<String>,
    #[command(flatten)]
    pub options: AttachmentOptions,
}

impl Existing {
    /// The attachment that the options and the environment describe.
    pub fn attachment(&self) -> Result<Attachment> {
        self.options
            .attachment(&self.network, self.netns.as_deref())
    }
}

/// What commands without an attachment accept because cnitool does.
#[derive(Debug, Args)]
pub struct Unread {
    /// Accepted as in cnitool, and ignored
    #[arg(value_name = "NETNS")]
    netns: Option<String>,
    /// Accepted as in cnitool, and ignored
    #[arg(short, long, value_name = "NAME")]
    ifname: Option<String>,
}

/// A path. The empty one, as of a variable that is set to nothing, stands for the default.
fn path_or(default: &'static str) -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(move |path| {
        if path.is_empty() {
            default.into()
        } else {
            path.into()
        }
    })
}

/// The directories of a list that is separated by colons.
pub fn directories(list: &OsStr) -> Vec<PathBuf> {
    let dirs = std::env::split_paths(list);
    dirs.filter(|dir| !dir.as_os_str().is_empty()).collect()
}

impl SurveyDirs {
    /// Looks at the node.
    ///
    /// # Errors
    /// As [`Survey::take`].
    pub fn survey(&self) -> Result<Survey> {
        Survey::take(&Sources {
            conf_dir: self.conf.conf_dir.clone(),
            cache_dir: self.cache.dir().to_owned(),
        })
    }
}

impl PluginDirs {
    /// The directories.
    pub fn all(&self) -> Vec<PathBuf> {
        directories(self.plugin_dir.as_os_str())
    }
}

impl CacheDir {
    /// The directory that has the cache.
    pub fn dir(&self) -> &Path {
        &self.cache_dir
    }

    /// The cache of attachments.
    pub fn open(&self) -> Cache {
        Cache::in_dir(&self.cache_dir)
    }
}

impl AttachmentOptions {
    /// The attachment to `network` that the options and the environment describe. Without
    /// `netns`, `--container-id` is required.
    pub fn attachment(&self, network: &str, netns: Option<&str>) -> Result<Attachment> {
        let netns = match netns {
            Some(netns) => absolute(netns, &std::env::current_dir()?),
            None => String::new(),
        };
        let container_id = match self.container_id.as_deref() {
            Some(id) if !id.is_empty() => id.to_owned(),
            _ if netns.is_empty() => bail!(CommandLine::command().error(
                clap::error::ErrorKind::MissingRequiredArgument,
                "no network namespace, and no --container-id"
            )),
            _ => derived_id(&netns),
        };
        let ifname = match self.ifname.as_str() {
            "" => "eth0",
            name => name,
        };
        Ok(Attachment {
            owner: cni::Attachment {
                network: network.to_owned(),
                container_id: ContainerId::parse(&container_id)?,
                ifname: IfName::parse(ifname)?,
            },
            netns,
            args: variable("CNI_ARGS")?.as_deref().map(cni_args).transpose()?,
            capability_args: match variable("CAP_ARGS")? {
                Some(text) => capability_args(&text)?,
                None => None,
            },
        })
    }
}

fn variable(name: &str) -> Result<Option<String>> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    let text = value.map(|value| value.into_string().ok());
    text.map(|text| text.with_context(|| format!("{name} is not UTF-8")))
        .transpose()
}

fn cni_args(text: &str) -> Result<Vec<(String, String)>> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() && !value.contains('=') => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => bail!("invalid CNI_ARGS pair {pair:?}"),
    };
    text.split(';').map(pair).collect()
}

fn capability_args(text: &str) -> Result<Option<Map<String, Value>>> {
    serde_json::from_str(text).context("parse CAP_ARGS: expected a JSON object")
}

/// The id that cnitool derives: `cnitool-` and the first ten bytes of the
/// SHA-512 of the namespace's path, in hex.
pub fn derived_id(netns: &str) -> String {
    const PREFIX: &str = "cnitool-";
    names::prefixed(PREFIX.len() + 20, PREFIX, netns)
}

/// The absolute path, cleaned without access to the disk as Go's `filepath.Abs` does: the
/// derived id depends on it, and the namespace may be gone.
fn absolute(path: &str, current_dir: &Path) -> String {
    let mut tidy = PathBuf::from("/");
    for component in current_dir.join(path).components() {
        match component {
            Component::Normal(name) => tidy.push(name),
            Component::ParentDir => {
                tidy.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    tidy.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_and_tidied_as_go_does() {
        let from = Path::new("/home/user");
        for (path, expected) in [
            ("/run//netns/./blue/", "/run/netns/blue"),
            ("/run/x/../netns/blue", "/run/netns/blue"),
            ("blue", "/home/user/blue"),
            ("../blue", "/home/blue"),
            ("/../..", "/"),
        ] {
            assert_eq!(absolute(path, from), expected);
        }
    }

    #[test]
    fn cni_args_are_pairs() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            cni_args("A=1;B=2").unwrap(),
            [pair("A", "1"), pair("B", "2")]
        );
        for text in ["A", "A=", "=1", "A=1;", "A=1=2"] {
            let error = cni_args(text).unwrap_err().to_string();
            assert!(error.starts_with("invalid CNI_ARGS pair "), "{error}");
        }
    }

    #[test]
    fn capability_args_are_an_object() {
        assert_eq!(capability_args("null").unwrap(), None);
        let args = capability_args(r#"{"mac": "x"}"#).unwrap();
        assert_eq!(args.unwrap()["mac"], "x");
        assert!(capability_args("[]").is_err() && capability_args("{").is_err());
    }
}
