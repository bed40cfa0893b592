//! A thread that lives in namespaces and runs closures there.
//!
//! Namespaces belong to a thread, and tests run as threads of one process. What a worker starts
//! is born in its namespaces; the thread that asks for it stays where it is.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};

type Job = Box<dyn FnOnce() + Send>;

/// The thread, and the way to give it work. It ends when this is dropped.
pub struct Worker {
    thread: Mutex<Option<(Sender<Job>, JoinHandle<()>)>>,
}

impl Worker {
    /// Starts the thread, which first runs `enter`: that moves it into namespaces. Also returns
    /// what `enter` returned.
    ///
    /// # Errors
    /// Those of `enter`.
    pub fn new<T: Send + 'static>(
        enter: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<(Self, T), String> {
        let (jobs, work) = channel::<Job>();
        let (entered, enters) = channel();
        let thread = spawn(move || {
            let result = enter();
            let usable = result.is_ok();
            let _ = entered.send(result);
            if usable {
                work.into_iter().for_each(|job| job());
            }
        });
        let value = enters.recv().map_err(|_| "a thread panicked")??;
        let thread = Mutex::new(Some((jobs, thread)));
        Ok((Self { thread }, value))
    }

    /// Runs `f` on the thread and returns what it returned.
    ///
    /// # Panics
    /// When `f` does, or when the thread was stopped.
    pub fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let job: Job = Box::new(move || {
            // A panic belongs to the caller; the thread goes on.
            let _ = answer.send(catch_unwind(AssertUnwindSafe(f)));
        });
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let (jobs, _) = thread.as_ref().expect("the worker was stopped");
        jobs.send(job).expect("the worker's thread is gone");
        drop(thread);
        let result = answered.recv().expect("no answer from the worker");
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Ends the thread, after the work that it has.
    pub fn stop(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((jobs, thread)) = thread.take() {
            drop(jobs);
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}
