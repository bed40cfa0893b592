//! The directories of a node, and what goes where.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use networks::{NetworkList, PluginConf};

use super::directory::{Changes, Directory, Item, Withdrawn};
use super::source::Source;
use crate::options::ConfDir;
use crate::validate::{self, Severity};

/// The units of the DHCP daemon. The names in place of directories are filled in.
const UNITS_OF_DHCP: [(&str, &str); 2] = [
    (
        "cni-dhcp.service",
        include_str!("../../../ipam/dhcp/systemd/cni-dhcp.service"),
    ),
    (
        "cni-dhcp.socket",
        include_str!("../../../ipam/dhcp/systemd/cni-dhcp.socket"),
    ),
];
/// The unit of the agent.
const UNIT_OF_AGENT: (&str, &str) = (
    "podwired.service",
    include_str!("../../../deploy/systemd/podwired.service"),
);
const BIN_DIR: &str = "@CNI_BIN_DIR@";
const SBIN_DIR: &str = "@SBIN_DIR@";

/// The directories.
#[derive(Debug, Args)]
pub struct Places {
    /// Where the plugins are to be
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    #[command(flatten)]
    conf_dir: ConfDir,
    /// Where podwire and podwired are to be; without it, they are not placed
    #[arg(long, value_name = "DIR")]
    sbin_dir: Option<PathBuf>,
    /// Where the systemd units of the DHCP daemon and podwired are to be; without it, they are not
    /// placed
    #[arg(long, value_name = "DIR")]
    unit_dir: Option<PathBuf>,
    /// The node's root directory; the others are below it
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// What is to be installed.
#[derive(Debug)]
pub struct Wanted {
    /// The programs.
    pub source: Source,
    /// Names of plugins.
    pub plugins: Vec<String>,
    /// The configuration of a network.
    pub conf: Option<PathBuf>,
    /// Files of other programs stay.
    pub keep_others: bool,
    /// Whether what is replaced is kept.
    pub keeps_record: bool,
}

impl Places {
    /// Installs. The programs come first: a runtime uses a configuration as soon as it is there.
    ///
    /// # Errors
    /// Nothing is changed if the configuration has a fault or names a plugin that is not there.
    /// Any other error stops the work; a repeated run completes it.
    pub fn install(&self, wanted: &Wanted) -> Result<Changes> {
        self.check()?;
        let conf = wanted.conf.as_deref();
        let conf = conf
            .map(|file| self.configuration(file, wanted))
            .transpose()?;
        let names: Vec<&str> = wanted.plugins.iter().map(String::as_str).collect();
        let mut all = Changes::default();
        let place = |dir: &Path, items: &[Item], all: &mut Changes| -> Result<()> {
            let directory = Directory::open(&self.below_root(dir), wanted.keeps_record)?;
            let changes = directory.place(items, wanted.keep_others)?;
            all.add(changes);
            Ok(())
        };
        let programs = match &self.sbin_dir {
            Some(dir) if *dir == self.bin_dir => wanted.source.commands(&names)?,
            sbin_dir => {
                if let Some(dir) = sbin_dir {
                    place(dir, &wanted.source.commands(&[])?, &mut all)?;
                }
                wanted.source.plugins(&names)?
            }
        };
        place(&self.bin_dir, &programs, &mut all)?;
        if let Some(dir) = &self.unit_dir {
            place(dir, &self.units(&names), &mut all)?;
        }
        if let Some(conf) = conf {
            place(&self.conf_dir.conf_dir, &[conf], &mut all)?;
        }
        Ok(all)
    }

    /// Takes back what [`Places::install`] has placed, in the reverse order.
    ///
    /// # Errors
    /// Any error stops the work; a repeated run completes it.
    pub fn withdraw(&self) -> Result<Withdrawn> {
        self.check()?;
        let mut all = Withdrawn::default();
        let mut dirs = vec![&self.conf_dir.conf_dir];
        dirs.extend(&self.unit_dir);
        dirs.push(&self.bin_dir);
        dirs.extend(&self.sbin_dir);
        for dir in dirs {
            if let Some(directory) = Directory::open_used(&self.below_root(dir))? {
                all.add(directory.withdraw()?);
            }
        }
        Ok(all)
    }

    /// Refuses directories that depend on where the command runs: below the root, `bin` would be `/bin`.
    fn check(&self) -> Result<()> {
        let dirs = [Some(&self.bin_dir), Some(&self.conf_dir.conf_dir)];
        let others = [self.sbin_dir.as_ref(), self.unit_dir.as_ref()];
        let mut all = dirs.into_iter().chain(others).flatten();
        match all.find(|it| it.is_relative()) {
            Some(dir) => bail!("{} is not an absolute path", dir.display()),
            None => Ok(()),
        }
    }

    /// The directories with files that others may remove: of plugins and configurations.
    pub fn shared_dirs(&self) -> Vec<PathBuf> {
        let dirs = [&self.bin_dir, &self.conf_dir.conf_dir];
        dirs.map(|it| self.below_root(it)).into()
    }

    fn below_root(&self, dir: &Path) -> PathBuf {
        self.root.join(dir.strip_prefix("/").unwrap_or(dir))
    }

    /// The units of what is installed.
    fn units(&self, plugins: &[&str]) -> Vec<Item> {
        let mut units = Vec::new();
        if plugins.contains(&"dhcp") {
            units.extend(UNITS_OF_DHCP);
        }
        units.extend(self.sbin_dir.is_some().then_some(UNIT_OF_AGENT));
        let path = |dir: &Path| dir.display().to_string();
        let unit = |(name, text): (&str, &str)| {
            let text = text.replace(BIN_DIR, &path(&self.bin_dir));
            let sbin_dir = self.sbin_dir.as_deref().map(path).unwrap_or_default();
            Item::text(name, text.replace(SBIN_DIR, &sbin_dir).into_bytes())
        };
        units.into_iter().map(unit).collect()
    }

    /// The configuration of a network, if it has no fault.
    fn configuration(&self, file: &Path, wanted: &Wanted) -> Result<Item> {
        let shown = file.display();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let ending = file.extension().unwrap_or_default();
        if !["conflist", "conf", "json"].iter().any(|it| ending == *it) {
            bail!("{shown}: runtimes read only *.conflist, *.conf and *.json");
        }
        for report in validate::all(&[file.to_owned()], None) {
            let faults = report.findings.all().iter();
            let mut errors = faults.filter(|it| it.severity == Severity::Error);
            if let Some(first) = errors.next() {
                let (path, reason) = (&first.path, &first.reason);
                bail!("{shown}: {path}: {reason}; podwire validate {shown} prints every fault");
            }
        }
        for plugin in types(file)? {
            let there = self.below_root(&self.bin_dir).join(&plugin).is_file();
            if !there && !wanted.plugins.contains(&plugin) {
                let dir = self.bin_dir.display();
                bail!("{shown}: the plugin {plugin} is neither installed nor in {dir}");
            }
        }
        let text = cni::file::read_chosen(file, cni::file::LONGEST);
        let text = text.with_context(|| format!("read {shown}"))?;
        Ok(Item::text(&name, text))
    }
}

/// The plugins that a configuration names.
fn types(file: &Path) -> Result<Vec<String>> {
    let plugins = if file.extension().is_some_and(|it| it == "conflist") {
        NetworkList::from_file(file)?.plugins
    } else {
        vec![PluginConf::from_file(file)?]
    };
    let mut types = Vec::new();
    for plugin in plugins {
        let ipam = plugin.document.get("ipam").and_then(|it| it.get("type"));
        types.extend(ipam.and_then(|it| it.as_str()).map(str::to_owned));
        types.push(plugin.plugin);
    }
    types.retain(|it| !it.is_empty());
    Ok(types)
}
