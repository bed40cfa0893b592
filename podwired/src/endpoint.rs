//! Health and metrics over HTTP: `/healthz` (each role answers), `/readyz` (each does what it is
//! for) and `/metrics`; with the key `page` also the page of the node, `/`, and what it shows, `/state`.
//!
//! It is for a scraper and a few browsers on the node. A connection carries one request.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use podwire::graph::View;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::conf::Endpoint;
use crate::control::{Control, listen};
use crate::metrics::Page;
use crate::page::Page as NodePage;
use crate::roles::Query;

/// The longest head of a request, in bytes.
const LONGEST: usize = 8 * 1024;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients are served at once.
const CLIENTS: usize = 16;

type Request = hyper::Request<Incoming>;
type Answer = hyper::Response<Full<Bytes>>;

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
    let listener = match endpoint {
        Endpoint::Unix(path) => Listener::Unix(listen(path)?),
        Endpoint::Loopback(address) => {
            let bound = TcpListener::bind(address).await;
            Listener::Tcp(bound.with_context(|| format!("listen at {address}"))?)
        }
    };
    let site = Site {
        control,
        page,
        names_host: matches!(listener, Listener::Tcp(_)),
    };
    tokio::spawn(accept(listener, Arc::new(site)));
    Ok(())
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

async fn accept(listener: Listener, site: Arc<Site>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    while let Ok(permit) = Arc::clone(&clients).acquire_owned().await {
        match listener.accept().await {
            Ok(stream) => {
                let site = Arc::clone(&site);
                tokio::spawn(async move {
                    let _permit = permit;
                    site.serve(stream).await;
                });
            }
            // No descriptor is left: others end meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Site {
    async fn serve(&self, stream: Box<dyn Stream>) {
        let answer = service_fn(|request: Request| async move {
            Ok::<_, Infallible>(self.answer(&request).await)
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(LONGEST)
            .serve_connection(TokioIo::new(stream), answer);
        let _ = tokio::time::timeout(PATIENCE, connection).await;
    }

    async fn answer(&self, request: &Request) -> Answer {
        let host = request.headers().get(header::HOST);
        if self.names_host && !host.is_none_or(is_of_this_node) {
            let why = "the host of the request is none of this node's loopback interface\n";
            return text(StatusCode::MISDIRECTED_REQUEST, why);
        }
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match (request.uri().path(), &self.page) {
            ("/healthz", _) => state_of(&health(&self.control).await),
            ("/readyz", _) => state_of(&readiness(&self.control)),
            ("/metrics", _) => answer(StatusCode::OK, METRICS, metrics(&self.control).await),
            ("/", Some(page)) => {
                let shown = answer(StatusCode::OK, HTML, page.document.clone());
                with(shown, header::CONTENT_SECURITY_POLICY, page.policy.clone())
            }
            ("/state", Some(page)) => state(page, request).await,
            (_, page) => {
                let page = page
                    .as_ref()
                    .map_or("", |_| ", and the page of the node at /");
                let why = format!("/healthz, /readyz and /metrics are here{page}\n");
                text(StatusCode::NOT_FOUND, why)
            }
        }
    }
}

/// Whether a `Host` is this node's loopback interface. Another name may have been made to lead here, so
/// that the page of a stranger may read what is served (DNS rebinding).
fn is_of_this_node(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else {
        return false;
    };
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

/// Nothing that is served is kept by a browser, guessed at, or read by another page.
fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::new(Full::new(body.into()));
    *answer.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    answer(status, TEXT, text)
}

fn with(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}

fn state_of(faults: &[String]) -> Answer {
    if faults.is_empty() {
        text(StatusCode::OK, "ok\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, faults.concat())
    }
}

/// The state of the node, unless the client has it (RFC 9110, 13.1.2).
async fn state(page: &NodePage, request: &Request) -> Answer {
    let view = match request.uri().query() {
        None | Some("view=host") => View::Host,
        Some("view=user") => View::User,
        _ => {
            return text(
                StatusCode::BAD_REQUEST,
                "state?view=host or state?view=user\n",
            );
        }
    };
    let Some(reading) = page.reading().await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the agent ends\n");
    };
    let state = match reading.state(view) {
        Ok(state) => state,
        Err(why) => return text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    let is_known = request.headers().get(header::IF_NONE_MATCH) == Some(&state.tag);
    let answer = if is_known {
        answer(StatusCode::NOT_MODIFIED, JSON, Bytes::new())
    } else {
        answer(StatusCode::OK, JSON, state.text.clone())
    };
    let answer = with(answer, header::ETAG, state.tag.clone());
    with(answer, header::AGE, reading.at.elapsed().as_secs().into())
}

async fn health(control: &Control) -> Vec<String> {
    let mut faults = Vec::new();
    for role in &control.roles {
        if let Err(error) = role.ask(Query::Status).await {
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
        if let Ok(own) = role.ask(Query::Metrics).await {
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
        let is_served = |host| is_of_this_node(&HeaderValue::from_static(host));
        for host in [
            "localhost",
            "LocalHost:99",
            "127.0.0.1:9153",
            "127.1.2.3",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(is_served(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:80",
            "192.0.2.1",
            "[::2]:80",
            "127.0.0.1.nip.io",
        ] {
            assert!(!is_served(host), "{host}");
        }
    }
}
