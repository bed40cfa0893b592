//! The page of the node: what it shows is read while a browser asks, on a thread of its own.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use podwire::graph::View;
use podwire::overview::{self, Overview, Places};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

/// The shortest time between the beginnings of two readings of the node.
const LEAST: Duration = Duration::from_secs(2);
/// A reading is followed by a pause that is so many times longer: one twentieth of one CPU.
const PAUSE: u32 = 19;
/// How long what was read is kept without a browser that asks.
const KEPT: Duration = Duration::from_secs(60);

/// The key of the configuration, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Where the configurations of networks are.
    conf_dir: Option<PathBuf>,
    /// Where the cache of attachments is.
    cache_dir: Option<PathBuf>,
    /// Where the plugins are.
    plugin_dirs: Option<Vec<PathBuf>>,
}

impl Conf {
    /// The places, those of `podwire` by default.
    ///
    /// # Errors
    /// A path is not absolute.
    pub fn places(self) -> Result<Places> {
        let places = Places {
            conf_dir: self.conf_dir.unwrap_or("/etc/cni/net.d".into()),
            cache_dir: self.cache_dir.unwrap_or("/var/lib/cni".into()),
            plugin_dirs: self.plugin_dirs.unwrap_or(vec!["/opt/cni/bin".into()]),
        };
        let others = [&places.conf_dir, &places.cache_dir];
        for path in places.plugin_dirs.iter().chain(others) {
            if !path.is_absolute() {
                bail!("{:?} is not an absolute path", path.display().to_string());
            }
        }
        Ok(places)
    }
}

/// The page, and the state of the node that it shows.
#[derive(Debug)]
pub struct Page {
    /// The document.
    pub document: Bytes,
    /// Its Content-Security-Policy.
    pub policy: HeaderValue,
    wanted: Notify,
    latest: watch::Sender<Option<Arc<Reading>>>,
}

/// A node that was read, or why it could not be.
#[derive(Debug)]
pub struct Reading {
    /// When.
    pub at: Instant,
    /// The state that each view shows.
    views: Result<[State; 2], String>,
}

/// A state of the node, as the script of the page reads it.
#[derive(Debug)]
pub struct State {
    /// JSON.
    pub text: Bytes,
    /// Its ETag: the same for the same text.
    pub tag: HeaderValue,
}

impl Page {
    /// Of the node that this process sees.
    ///
    /// # Errors
    /// The policy is none that HTTP can carry.
    pub fn open(places: Places) -> Result<Arc<Self>> {
        let (document, policy) = overview::document();
        let page = Arc::new(Self {
            document: document.into(),
            policy: policy.try_into().context("policy of the page")?,
            wanted: Notify::new(),
            latest: watch::Sender::new(None),
        });
        tokio::spawn(Arc::clone(&page).read_while_wanted(places));
        Ok(page)
    }

    /// The last reading, which may be that before the next one; the first is waited for.
    pub async fn reading(&self) -> Option<Arc<Reading>> {
        self.wanted.notify_one();
        let mut latest = self.latest.subscribe();
        let reading = latest.wait_for(Option::is_some).await;
        reading.ok()?.clone()
    }

    async fn read_while_wanted(self: Arc<Self>, places: Places) {
        loop {
            if timeout(KEPT, self.wanted.notified()).await.is_err() {
                self.latest.send_replace(None);
                self.wanted.notified().await;
            }
            let at = Instant::now();
            let places = places.clone();
            let read = spawn_blocking(move || views(&places)).await;
            let views = match read {
                Ok(views) => views.map_err(|error| format!("{error:#}")),
                Err(error) => Err(format!("read the node: {error}")),
            };
            self.latest
                .send_replace(Some(Arc::new(Reading { at, views })));
            sleep(LEAST.max(at.elapsed() * PAUSE)).await;
        }
    }
}

impl Reading {
    /// The state that a view shows.
    ///
    /// # Errors
    /// The node could not be read.
    pub fn state(&self, view: View) -> Result<&State, &str> {
        let [host, user] = self.views.as_ref().map_err(String::as_str)?;
        Ok(match view {
            View::Host => host,
            View::User => user,
        })
    }
}

fn views(places: &Places) -> Result<[State; 2]> {
    let overview = Overview::read(places)?;
    let state = |view| -> Result<State> {
        let text = overview
            .state(view)
            .context("write the state of the node")?;
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let tag = format!("\"{:016x}\"", hasher.finish()).try_into()?;
        let text = text.into();
        Ok(State { text, tag })
    };
    Ok([state(View::Host)?, state(View::User)?])
}
