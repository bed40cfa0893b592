//! The end of a process that may not answer any more.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::time::Time;

/// Has the kernel kill this process at `until`, even while it is stopped. So an answer that rests on
/// a fence is never printed after it: no check of the time in between can promise that, as the
/// process may be stopped after the check.
///
/// # Errors
/// Those of timer_create(2).
pub fn die_at(until: Time) -> Result<()> {
    let event = SigEvent::new(SigevNotify::SigevSignal {
        signal: Signal::SIGKILL,
        si_value: 0,
    });
    let timer = Timer::new(ClockId::CLOCK_BOOTTIME, event);
    let mut timer = timer.context("make a timer for the fence")?;
    // Zero would disarm it.
    let at = TimeSpec::from_duration(Duration::from_nanos(until.0.max(1)));
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
    let armed = timer.set(Expiration::OneShot(at), flags);
    armed.context("start the timer of the fence")?;
    // It is deleted when it is dropped.
    std::mem::forget(timer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    /// What the test below runs as another process.
    #[test]
    fn victim() {
        if std::env::var_os("FENCE_VICTIM").is_some() {
            die_at(Time::now().after(Duration::from_millis(300))).unwrap();
            // The fence is set: from here on this process may be stopped.
            nix::sys::signal::raise(Signal::SIGSTOP).unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "this program itself")]
    fn a_process_ends_at_its_fence_even_while_it_is_stopped() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "fence::tests::victim"]);
        command.env("FENCE_VICTIM", "1").stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    }
}
