//! The configuration file, and what is made of it.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use cni::file;
use cni::json::{Json, Stray};
use podwire::overview::Places;
use serde::Deserialize;

use crate::arguments::{Arguments, CONFIGURATION};
use crate::log::Level;
use crate::resolver::{self, sharing::Shared};
use crate::roles::Role;

/// The agent's socket, unless the configuration names another.
pub const SOCKET: &str = "/run/podwire/podwired.sock";

/// The file as it is written. A role runs if its key is there.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// `error`, `warn`, `info` (the default) or `debug`.
    log_level: Option<String>,
    /// The path of the agent's socket.
    socket: Option<PathBuf>,
    /// Where health and metrics are served: `unix:` and a path, or a loopback address with a port.
    endpoint: Option<String>,
    /// Serves the page of the node there.
    page: Option<crate::page::Conf>,
    /// The role that answers for the names of pods.
    resolver: Option<crate::resolver::Conf>,
    /// The role that makes the nodes of a network peers.
    overlay: Option<crate::overlay::Conf>,
    /// The role that has addresses for the plugin `cluster`.
    ipam: Option<crate::ipam::Conf>,
}

/// What the agent does.
#[derive(Debug, PartialEq)]
pub struct Settings {
    /// What is logged.
    pub level: Level,
    /// The path of the agent's socket.
    pub socket: PathBuf,
    /// Where health and metrics are served; nowhere by default.
    pub endpoint: Option<Endpoint>,
    /// What the page of the node shows there; no page by default.
    pub page: Option<Places>,
    /// What is switched on.
    pub roles: Vec<Role>,
}

/// Where health and metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket in the file system, for root alone.
    Unix(PathBuf),
    /// An address of the loopback interface.
    Loopback(SocketAddr),
}

impl Settings {
    /// Reads the file that the arguments name. On demand it may be absent.
    ///
    /// # Errors
    /// The file cannot be read, or each of its faults with its key.
    pub fn load(arguments: &Arguments) -> Result<Self> {
        let path = arguments.config.as_deref();
        let read = file::read_chosen(path.unwrap_or(Path::new(CONFIGURATION)), file::LONGEST);
        let path = path.unwrap_or(Path::new(CONFIGURATION));
        let text = match read {
            Err(error) if error.kind() == ErrorKind::NotFound && arguments.on_demand => {
                b"{}".to_vec()
            }
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        Self::parse(&text, arguments.on_demand)
            .with_context(|| format!("configuration {}", path.display()))
    }

    /// Reads a document.
    ///
    /// # Errors
    /// All faults, each with its key.
    pub fn parse(text: &[u8], on_demand: bool) -> Result<Self> {
        let document = Json::parse(text)?;
        let reading = document.decode_all::<Conf>();
        let mut faults: Vec<String> = reading.faults.iter().map(ToString::to_string).collect();
        for stray in reading.keys.strays(&document) {
            faults.push(match stray {
                Stray::Unknown { path, known } => {
                    format!(
                        "{path}: unknown key, the keys here are {}",
                        known.join(", ")
                    )
                }
                Stray::Repeated { path } => format!("{path}: is there twice"),
            });
        }
        let mut settings = Self {
            level: Level::Info,
            socket: SOCKET.into(),
            endpoint: None,
            page: None,
            roles: Vec::new(),
        };
        if let Some(conf) = reading.value {
            settings.take(conf, on_demand, &mut faults);
        }
        if faults.is_empty() {
            Ok(settings)
        } else {
            Err(anyhow!(faults.join("; ")))
        }
    }

    fn take(&mut self, conf: Conf, on_demand: bool, faults: &mut Vec<String>) {
        let mut keep = |key: &str, result: Result<()>| {
            if let Err(error) = result {
                faults.push(format!("{key}: {error:#}"));
            }
        };
        if let Some(text) = conf.log_level {
            keep("logLevel", text.parse().map(|level| self.level = level));
        }
        if let Some(path) = conf.socket {
            keep("socket", absolute(&path).map(|()| self.socket = path));
        }
        // The agent that runs on demand has no page: it comes and goes.
        if let Some(text) = conf.endpoint.filter(|_| !on_demand) {
            let parsed = Endpoint::parse(&text);
            keep("endpoint", parsed.map(|it| self.endpoint = Some(it)));
        }
        if let Some(conf) = conf.page.filter(|_| !on_demand) {
            if self.endpoint.is_none() {
                keep(
                    "page",
                    Err(anyhow!("it is served at the endpoint: that key is missing")),
                );
            }
            keep("page", conf.places().map(|it| self.page = Some(it)));
        }
        let resolver = if on_demand {
            Some(conf.resolver.unwrap_or_default())
        } else {
            conf.resolver
        };
        let overlay = conf.overlay.filter(|_| !on_demand);
        let overlay = overlay.map(|it| crate::overlay::Settings::new(&it));
        let mut overlay = match overlay.transpose() {
            Ok(overlay) => overlay,
            Err(all) => return faults.extend(all),
        };
        if resolver.is_some() {
            let shared = overlay.as_mut().map(|overlay| {
                overlay.add_names();
                Shared::of(overlay)
            });
            self.roles
                .push(Role::Resolver(resolver::Settings { shared }));
        }
        let ipam = conf.ipam.filter(|_| !on_demand);
        let ipam = ipam.map(|it| crate::ipam::Settings::new(&it)).transpose();
        let ipam = match ipam {
            Ok(ipam) => ipam,
            Err(all) => return faults.extend(all),
        };
        if let (Some(overlay), Some(ipam)) = (&mut overlay, &ipam) {
            overlay.add_addresses(&self.socket, &ipam.data_dir);
        }
        self.roles.extend(overlay.map(Role::Overlay));
        self.roles.extend(ipam.map(Role::Ipam));
        if self.roles.is_empty() && self.page.is_none() {
            let roles = "resolver, overlay, ipam";
            faults.push(format!(
                "no role is switched on; the keys of roles are: {roles}"
            ));
        }
    }
}

impl Endpoint {
    fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            absolute(Path::new(path))?;
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| anyhow!("{text:?} is neither unix:PATH nor ADDRESS:PORT"))?;
        if !address.ip().is_loopback() {
            bail!("{text:?} is not an address of the loopback interface");
        }
        Ok(Self::Loopback(address))
    }
}

fn absolute(path: &Path) -> Result<()> {
    if path.is_absolute() {
        Ok(())
    } else {
        bail!("{:?} is not an absolute path", path.display().to_string())
    }
}

/// Removes a socket that another process left; a file of another kind stays.
pub(crate) fn remove_socket(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    if fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text.as_bytes(), false).map_err(|it| it.to_string())
    }

    #[test]
    fn a_role_runs_if_its_key_is_there() {
        let settings = parse(r#"{"resolver": {}, "endpoint": "[::1]:99", "logLevel": "debug"}"#);
        let settings = settings.unwrap();
        assert_eq!(settings.roles.len(), 1);
        assert_eq!(settings.level, Level::Debug);
        let endpoint = Endpoint::Loopback("[::1]:99".parse().unwrap());
        assert_eq!(settings.endpoint, Some(endpoint));
        assert_eq!(settings.socket, Path::new(SOCKET));
        assert!(parse("{}").unwrap_err().contains("no role is switched on"));
        assert_eq!(Settings::parse(b"{}", true).unwrap().roles.len(), 1);
    }

    #[test]
    fn the_page_needs_the_endpoint_alone() {
        let settings =
            parse(r#"{"page": {"cacheDir": "/c"}, "endpoint": "127.0.0.1:99"}"#).unwrap();
        let places = settings.page.unwrap();
        assert_eq!(places.cache_dir, Path::new("/c"));
        assert_eq!(places.plugin_dirs, [Path::new("/opt/cni/bin")]);
        let error = parse(r#"{"page": {"confDir": "c"}}"#).unwrap_err();
        for part in [
            "page: it is served at the endpoint",
            "page: \"c\" is not an absolute path",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn each_fault_is_named_with_its_key() {
        let error = parse(
            r#"{"resolver": {"x": 1}, "logLevel": "loud", "socket": "here",
                "endpoint": "0.0.0.0:53", "reslover": {}}"#,
        );
        let error = error.unwrap_err();
        for part in [
            "resolver.x: unknown key",
            "logLevel: \"loud\" is none of error, warn, info, debug",
            "socket: \"here\" is not an absolute path",
            "endpoint: \"0.0.0.0:53\" is not an address of the loopback interface",
            "reslover: unknown key",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(
            parse(r#"{"resolver": 5}"#)
                .unwrap_err()
                .contains("resolver")
        );
        assert!(parse("nonsense").is_err());
    }
}
