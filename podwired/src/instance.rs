//! One agent on a node: a lock in the directory of its socket, and how an agent that was started on
//! demand gives way.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cni::file;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// How long to wait for another agent to end. One that was started on demand ends at once.
const PATIENCE: Duration = Duration::from_secs(5);
const NAP: Duration = Duration::from_millis(5);

/// The node's agent, as long as this lives.
#[derive(Debug)]
pub struct Instance {
    _lock: Flock<File>,
}

/// Whether this process is the node's agent.
#[derive(Debug)]
pub enum Taken {
    /// It is.
    Here(Instance),
    /// Another process is, and answers on its socket.
    Elsewhere,
}

impl Instance {
    /// Makes this process the node's agent. On demand, another one is as good. Otherwise an agent
    /// that was started on demand is asked to end.
    ///
    /// # Errors
    /// Another agent does not end, or the lock's file cannot be made.
    pub fn take(socket: &Path, on_demand: bool) -> Result<Taken> {
        let dir = socket.parent().unwrap_or(Path::new("/"));
        file::make_private_dir(dir).with_context(|| format!("make {}", dir.display()))?;
        let path = socket.with_extension("lock");
        let opened = file::open(&path, OFlag::O_RDWR | OFlag::O_CREAT);
        let (mut file, _) = opened.with_context(|| format!("open {}", path.display()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Taken::Here(Self { _lock: lock })),
                Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
                Err((_, errno)) => bail!("lock {}: {errno}", path.display()),
            };
            match UnixStream::connect(socket) {
                Ok(_) if on_demand => return Ok(Taken::Elsewhere),
                Ok(stream) => give_way(stream)?,
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                bail!("another agent runs: it has locked {}", path.display());
            }
            sleep(NAP);
        }
    }
}

/// Asks the agent behind the socket to end.
fn give_way(mut stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    let answered = stream
        .write_all(b"{\"giveWay\":{}}\n")
        .and_then(|()| BufReader::new(&stream).read_line(&mut answer));
    match answered {
        Ok(_) if answer.contains("\"error\"") => bail!("another agent runs: {}", answer.trim()),
        // It may have ended meanwhile.
        _ => Ok(()),
    }
}

/// Leaves the session of the plugin that started this process, its descriptors and its standard
/// streams: a runtime waits until a plugin's are closed. Standard output stays until
/// [`close_output`].
///
/// # Errors
/// Those of chdir(2) and dup2(2); /proc cannot be read.
pub fn detach() -> Result<()> {
    close_inherited()?;
    // EPERM: it leads its process group, so it was started by hand.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/").context("leave the working directory")?;
    let null = File::open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("close standard input")?;
    Ok(())
}

/// Closes what the processes above left open: `podwire run` has its plugins hold the lock of the
/// record of an attachment, and this process would hold it until the last name is gone.
fn close_inherited() -> Result<()> {
    let listed = std::fs::read_dir("/proc/self/fd").context("list open descriptors")?;
    let number = |it: std::fs::DirEntry| it.file_name().to_str()?.parse::<RawFd>().ok();
    let open: Vec<_> = listed.flatten().filter_map(number).collect();
    for descriptor in open.into_iter().filter(|it| *it > 2) {
        // That of the list is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// Shows the plugin that started this process that the agent serves.
pub fn close_output() {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn on_demand_an_agent_that_answers_is_as_good() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run").join("agent.sock");
        let Taken::Here(first) = Instance::take(&socket, true).unwrap() else {
            panic!("no other agent runs");
        };
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(matches!(
            Instance::take(&socket, true),
            Ok(Taken::Elsewhere)
        ));
        let refusing = std::thread::spawn(move || {
            // The first one only connected.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(b"{\"error\":\"no\"}\n").unwrap();
            line
        });
        let error = Instance::take(&socket, false).unwrap_err().to_string();
        assert!(error.contains("another agent runs"), "{error}");
        assert_eq!(refusing.join().unwrap(), "{\"giveWay\":{}}\n");
        drop(first);
        assert!(matches!(Instance::take(&socket, false), Ok(Taken::Here(_))));
    }
}
