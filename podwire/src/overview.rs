//! What `podwire ps`, `graph` and `doctor` show of a node, on one page that the agent serves
//! (`podwired/src/page.rs`). The page asks for the state of the node again and again; a state is a
//! JSON document. Nothing on the page changes the node.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};
use survey::{Sources, Survey};

use crate::commands::containers;
use crate::doctor::{Examination, Scope};
use crate::graph::host::Read;
use crate::graph::svg::{self, Colours};
use crate::graph::{Graph, View, host, page, picture, user};

const PAGE: &str = include_str!("overview/page.html");
const STYLE: &str = include_str!("overview/page.css");
const SCRIPT: &str = include_str!("overview/page.js");

/// Where a node's networks are described, and where its plugins are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Where the configurations are.
    pub conf_dir: PathBuf,
    /// Where the cache of attachments is.
    pub cache_dir: PathBuf,
    /// Where the plugins are.
    pub plugin_dirs: Vec<PathBuf>,
}

/// A node at one moment.
#[derive(Debug)]
pub struct Overview {
    host: Graph,
    user: Graph,
    /// Without its drawing.
    rest: Value,
}

impl Overview {
    /// Reads the node.
    ///
    /// # Errors
    /// The node, the cache or the configurations cannot be read at all.
    pub fn read(places: &Places) -> Result<Self> {
        let sources = Sources {
            conf_dir: places.conf_dir.clone(),
            cache_dir: places.cache_dir.clone(),
        };
        let survey = Survey::take(&sources)?;
        let examined =
            Examination::confirmed(&survey, &sources, &places.plugin_dirs, &Scope::Node)?;
        let (mut found, _) = examined;
        let read = Read::with(&survey, |error| found.unread("rules", error))?;
        Ok(Self {
            host: host::graph(&read),
            user: user::graph(&read),
            rest: json!({
                "node": read.name,
                "containers": containers(&survey, None, true)?,
                "doctor": found.document(&[]),
            }),
        })
    }

    /// The state of the node as JSON, with the drawing of one view as SVG.
    ///
    /// # Errors
    /// Those of `serde_json`.
    pub fn state(&self, view: View) -> Result<String> {
        let graph = match view {
            View::Host => &self.host,
            View::User => &self.user,
        };
        let mut state = self.rest.clone();
        state["graph"] = serde_json::to_value(graph)?;
        let scene = picture::picture(graph);
        state["drawing"] = json!({
            "width": scene.width,
            "height": scene.height,
            "inside": svg::drawing(&scene),
        });
        Ok(state.to_string())
    }
}

/// The page, and the policy that a browser is to enforce for it (a header of HTTP): nothing runs but
/// its own script, which asks only the server of the page.
pub fn document() -> (String, String) {
    let style = svg::style(Colours::Auto) + page::STYLE + STYLE;
    let script = format!("{}{SCRIPT}", page::VIEWER);
    let policy = format!(
        "{}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        page::policy(&style, &script)
    );
    let parts = [("style", style), ("script", script)];
    (page::filled(PAGE, &parts), policy)
}
