//! Health and metrics over HTTP: `/healthz` (each role answers), `/readyz` (each does what it is
//! for) and `/metrics`; with the key `page` also the page of the node, `/`, and what it shows, `/state`.
//!
//! It is for a scraper and a few browsers on the node. A connection carries one request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use podwire::graph::View;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::conf::Endpoint;
use crate::control::{Control, listen};
use crate::metrics::Page;
use crate::page::Page as NodePage;
use crate::roles::Ask;

/// The longest head of a request, in bytes.
const LONGEST: usize = 8 * 1024;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients are served at once.
const CLIENTS: usize = 16;

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// What is served.
struct Site {
    control: Arc<Control>,
    page: Option<Arc<NodePage>>,
    /// Whether a client names the host that it means: those of a socket in the file system do not.
    names_host: bool,
}

/// Serves until the task is dropped.
///
/// # Errors
/// The address cannot be listened at.
pub async fn open(
    endpoint: &Endpoint,
    control: Arc<Control>,
    page: Option<Arc<NodePage>>,
) -> Result<()> {
    let (listener, names_host) = match endpoint {
        Endpoint::Unix(path) => (Listener::Unix(listen(path)?), false),
        Endpoint::Loopback(address) => {
            let bound = TcpListener::bind(address).await;
            let bound = bound.with_context(|| format!("listen at {address}"))?;
            (Listener::Tcp(bound), true)
        }
    };
    let site = Site {
        control,
        page,
        names_host,
    };
    tokio::spawn(accept(listener, Arc::new(site)));
    Ok(())
}

async fn accept(listener: Listener, site: Arc<Site>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        let site = Arc::clone(&site);
        match &listener {
            Listener::Unix(listener) => match listener.accept().await {
                Ok((stream, _)) => tokio::spawn(async move {
                    let _permit = permit;
                    site.serve(stream).await;
                }),
                Err(_) => pause().await,
            },
            Listener::Tcp(listener) => match listener.accept().await {
                Ok((stream, _)) => tokio::spawn(async move {
                    let _permit = permit;
                    site.serve(stream).await;
                }),
                Err(_) => pause().await,
            },
        };
    }
}

/// No descriptor is left: others end meanwhile.
async fn pause() -> tokio::task::JoinHandle<()> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::spawn(async {})
}

impl Site {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        let served = async {
            let answer = match read_head(&mut stream).await? {
                Some(head) => self.answer(&Request::read(&head)).await,
                None => Answer::text("400 Bad Request", "not a request of HTTP\n"),
            };
            stream.write_all(answer.head().as_bytes()).await.ok()?;
            stream.write_all(answer.body.as_bytes()).await.ok()?;
            stream.shutdown().await.ok()
        };
        let _ = tokio::time::timeout(PATIENCE, served).await;
    }

    async fn answer(&self, request: &Request<'_>) -> Answer {
        if self.names_host && !request.host.is_none_or(is_of_this_node) {
            let why = "the host of the request is none of this node's loopback interface\n";
            return Answer::text("421 Misdirected Request", why);
        }
        if request.method != "GET" {
            return Answer::text("405 Method Not Allowed", "only GET\n");
        }
        match (request.path, &self.page) {
            ("/healthz", _) => Answer::health(&health(&self.control).await),
            ("/readyz", _) => Answer::health(&readiness(&self.control)),
            ("/metrics", _) => Answer::new("200 OK", METRICS, metrics(&self.control).await),
            ("/", Some(page)) => Answer {
                policy: Some(page.policy.clone()),
                ..Answer::new("200 OK", HTML, page.document.clone())
            },
            ("/state", Some(page)) => state(page, request).await,
            (_, page) => {
                let page = page
                    .as_ref()
                    .map_or("", |_| ", /state, and the page of the node at /");
                let text = format!("/healthz, /readyz and /metrics are here{page}\n");
                Answer::text("404 Not Found", &text)
            }
        }
    }
}

/// The head of a request, if it is complete; within, `None` if it is none of HTTP.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Option<String>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|it| it == b"\r\n\r\n") {
        let length = stream.read(&mut buffer).await.ok()?;
        if length == 0 {
            return None;
        }
        head.extend_from_slice(buffer.get(..length)?);
        if head.len() > LONGEST {
            return Some(None);
        }
    }
    Some(Some(String::from_utf8_lossy(&head).into_owned()))
}

/// What of a request matters here.
#[derive(Debug, Default, PartialEq)]
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    host: Option<&'a str>,
    /// The tag of what the client has.
    tag: Option<&'a str>,
}

impl<'a> Request<'a> {
    fn read(head: &'a str) -> Self {
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self {
            method: method.unwrap_or_default(),
            path,
            query,
            ..Self::default()
        };
        for (name, value) in lines.filter_map(|it| it.split_once(':')) {
            let value = Some(value.trim());
            match name.to_ascii_lowercase().as_str() {
                // Of two, the first is as good: a browser sends one.
                "host" => request.host = request.host.or(value),
                "if-none-match" => request.tag = value,
                _ => {}
            }
        }
        request
    }
}

/// Whether a `Host` is this node's loopback interface. Another name may have been made to lead here, so
/// that the page of a stranger may read what is served (DNS rebinding).
fn is_of_this_node(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        // Through a tunnel of ssh, the port is another.
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

#[derive(Debug)]
struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
    /// For a page.
    policy: Option<String>,
    /// For a state: its tag, and how many seconds ago it was read.
    read: Option<(String, u64)>,
}

impl Answer {
    fn new(status: &'static str, kind: &'static str, body: String) -> Self {
        Self {
            status,
            kind,
            body,
            policy: None,
            read: None,
        }
    }

    fn text(status: &'static str, text: &str) -> Self {
        Self::new(status, TEXT, text.to_owned())
    }

    fn health(faults: &[String]) -> Self {
        match faults.is_empty() {
            true => Self::text("200 OK", "ok\n"),
            false => Self::text("503 Service Unavailable", &faults.concat()),
        }
    }

    fn head(&self) -> String {
        let mut head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\nReferrer-Policy: no-referrer\r\n",
            self.status,
            self.kind,
            self.body.len()
        );
        if let Some(policy) = &self.policy {
            head += &format!("Content-Security-Policy: {policy}\r\n");
        }
        if let Some((tag, age)) = &self.read {
            head += &format!("ETag: {tag}\r\nAge: {age}\r\n");
        }
        head + "\r\n"
    }
}

async fn state(page: &NodePage, request: &Request<'_>) -> Answer {
    let view = match request.query {
        "" | "view=host" => View::Host,
        "view=user" => View::User,
        _ => return Answer::text("400 Bad Request", "state?view=host or state?view=user\n"),
    };
    let Some(reading) = page.reading().await else {
        return Answer::text("503 Service Unavailable", "the agent ends\n");
    };
    match reading.state(view) {
        Err(why) => Answer::text("503 Service Unavailable", &format!("{why}\n")),
        Ok(state) => {
            let answer = match request.tag == Some(&*state.tag) {
                true => Answer::new("304 Not Modified", JSON, String::new()),
                false => Answer::new("200 OK", JSON, state.text.clone()),
            };
            let read = Some((state.tag.clone(), reading.at.elapsed().as_secs()));
            Answer { read, ..answer }
        }
    }
}

async fn health(control: &Control) -> Vec<String> {
    let mut faults = Vec::new();
    for role in &control.roles {
        if let Err(error) = role.ask(Ask::Status).await {
            faults.push(format!("{error}\n"));
        }
    }
    faults
}

fn readiness(control: &Control) -> Vec<String> {
    let mut faults = Vec::new();
    for role in &control.roles {
        if let Err(why) = &*role.readiness.borrow() {
            faults.push(format!("{}: {why}\n", role.name));
        }
    }
    faults
}

async fn metrics(control: &Control) -> String {
    let mut page = Page::default();
    page.begin("podwired_build_info", "gauge", "The version that runs.");
    page.sample(
        "podwired_build_info",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1,
    );
    let help = "Whether a role does what it is for.";
    page.begin("podwired_role_ready", "gauge", help);
    for role in &control.roles {
        let ready = u8::from(role.readiness.borrow().is_ok());
        page.sample("podwired_role_ready", &[("role", role.name)], ready);
    }
    if let Some(bytes) = resident() {
        let help = "Resident memory size in bytes.";
        page.single("process_resident_memory_bytes", "gauge", help, bytes);
    }
    for role in &control.roles {
        if let Ok(own) = role.ask(Ask::Metrics).await {
            page.append(&own);
        }
    }
    page.text().to_owned()
}

fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_loopback_interface_are_served() {
        for host in [
            "localhost",
            "LocalHost:99",
            "127.0.0.1:9153",
            "127.1.2.3",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(is_of_this_node(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:80",
            "192.0.2.1",
            "[::2]:80",
            "127.0.0.1.nip.io",
        ] {
            assert!(!is_of_this_node(host), "{host}");
        }
    }

    #[test]
    fn a_request_is_read_with_what_matters() {
        let head =
            "GET /state?view=user HTTP/1.1\r\nhOST: localhost:1 \r\nIf-None-Match: \"a\"\r\n\r\n";
        let expected = Request {
            method: "GET",
            path: "/state",
            query: "view=user",
            host: Some("localhost:1"),
            tag: Some("\"a\""),
        };
        assert_eq!(Request::read(head), expected);
        assert_eq!(Request::read(""), Request::default());
    }
}
