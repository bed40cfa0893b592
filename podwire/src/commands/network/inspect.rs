//! `podwire network inspect`

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::catalogue;
use crate::commands::{Verdict, sweep};
use crate::network::{Attached, Document, format, native, with_go_names};
use crate::options::{CacheDir, ConfDir};
use crate::output::{Output, print};

/// Print networks as Docker does: a JSON array of documents with the keys of docker network
/// inspect.
///
/// Containers are those in the cache of attachments. A missing network is reported, the others
/// are printed, and the exit status is 1.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The networks
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
    /// Fill a TEMPLATE with each document
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Accepted as in Docker, and ignored
    #[arg(short, long)]
    verbose: bool,
    /// Print the configuration, and what the kernel has of it, instead
    #[arg(long)]
    native: bool,
    #[command(flatten)]
    conf: ConfDir,
    #[command(flatten)]
    cache: CacheDir,
}

impl Inspect {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        sweep(&self.cache);
        let catalogue = catalogue(&self.conf.conf_dir)?;
        let cache = self.cache.open();
        let (mut documents, mut missing) = (Vec::new(), Vec::new());
        for word in &self.networks {
            match catalogue.find(word) {
                Err(error) => missing.push(error),
                Ok(network) => {
                    let attached = Attached::to(&network.name, &cache)?;
                    documents.push((network, attached));
                }
            }
        }
        let mut all_printed = true;
        match self.format.as_deref() {
            Some("json") => all_printed = self.print_lines(&documents, "{{json .}}")?,
            Some(template) => all_printed = self.print_lines(&documents, template)?,
            None if self.native => {
                let documents = documents
                    .iter()
                    .map(|(network, attached)| native(network, attached));
                output.print_json(&documents.collect::<Result<Vec<_>>>()?)?;
            }
            None => {
                let documents = documents
                    .iter()
                    .map(|(network, attached)| Document::of(network, attached));
                output.print_json(&documents.collect::<Vec<_>>())?;
            }
        }
        for error in &missing {
            cni::log(format_args!("podwire: {error}"));
        }
        Ok(Verdict::good_if(missing.is_empty() && all_printed))
    }

    /// Fills the template with each document. A field that one of them does not have is reported,
    /// and the others are printed.
    fn print_lines(
        &self,
        documents: &[(&networks::named::Network, Attached)],
        template: &str,
    ) -> Result<bool> {
        let mut all_printed = true;
        for (network, attached) in documents {
            let document: Value = if self.native {
                native(network, attached)?
            } else {
                serde_json::to_value(Document::of(network, attached))?
            };
            let filled = format::fill(template, &document).or_else(|error| {
                let named = format::fill(template, &with_go_names(document));
                named.map_err(|_| error)
            });
            match filled {
                Ok(text) => print(&(text + "\n"))?,
                Err(error) => {
                    cni::log(format_args!("podwire: {error:#}"));
                    all_printed = false;
                }
            }
        }
        Ok(all_printed)
    }
}
