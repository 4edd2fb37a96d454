//! What the standard library cannot do: the only unsafe code of the runner. Declared here instead of taken from a
//! crate, because the runner is compiled alone, by the compiler and nothing else. 64-bit Linux only, as is the agent.

use std::{io, os::unix::process::CommandExt, process::Command, time::Duration};

pub const SIGINT: i32 = 2;
pub const SIGKILL: i32 = 9;
pub const SIGTERM: i32 = 15;
pub const SIGCHLD: i32 = 17;

const SIG_DFL: usize = 0;
const SIG_BLOCK: i32 = 0;
const SIG_SETMASK: i32 = 2;
const WNOHANG: i32 = 1;
const PR_SET_PDEATHSIG: i32 = 1;
const PR_SET_CHILD_SUBREAPER: i32 = 36;

/// `sigset_t`: 1024 bits on Linux.
#[repr(C)]
struct SigSet([u64; 16]);

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

unsafe extern "C" {
    fn signal(signal: i32, handler: usize) -> usize;
    fn sigprocmask(how: i32, set: *const SigSet, old: *mut SigSet) -> i32;
    fn sigtimedwait(set: *const SigSet, info: *mut u8, timeout: *const Timespec) -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
    fn prctl(option: i32, arg2: usize, arg3: usize, arg4: usize, arg5: usize) -> i32;
}

fn watched() -> SigSet {
    let mut set = SigSet([0; 16]);
    for signal in [SIGINT, SIGTERM, SIGCHLD] {
        set.0[0] |= 1 << (signal - 1);
    }
    set
}

/// Keeps SIGINT, SIGTERM and SIGCHLD for [`next_signal`]. A blocked signal also reaches a process with id 1, whose
/// unhandled signals the kernel otherwise drops. An agent that was started in the background by a script ignores SIGINT,
/// and so would all that it starts: a stage must be open to interruption.
pub fn hold_signals() {
    for number in [SIGINT, SIGTERM, SIGCHLD] {
        // SAFETY: sets the default action; no handler of ours is involved.
        unsafe { signal(number, SIG_DFL) };
    }
    // SAFETY: the set lives through the call; the old mask is not asked for.
    unsafe { sigprocmask(SIG_BLOCK, &watched(), std::ptr::null_mut()) };
}

/// The next held signal, or `None` after `wait`.
pub fn next_signal(wait: Duration) -> Option<i32> {
    let timeout = Timespec { seconds: wait.as_secs() as i64, nanos: i64::from(wait.subsec_nanos()) };
    // SAFETY: both structures live through the call; no details of the signal are asked for.
    let signal = unsafe { sigtimedwait(&watched(), std::ptr::null_mut(), &timeout) };
    (signal > 0).then_some(signal)
}

/// Orphans of this process's children become its own children, as they do anyway for process id 1.
pub fn adopt_orphans() {
    // SAFETY: sets a flag of this process.
    unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// The child starts with no signal blocked, and is killed when the runner dies.
pub fn bind_to_us(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls may be made; both are plain system calls.
    unsafe {
        command.pre_exec(|| {
            sigprocmask(SIG_SETMASK, &SigSet([0; 16]), std::ptr::null_mut());
            prctl(PR_SET_PDEATHSIG, SIGKILL as usize, 0, 0, 0);
            Ok(())
        });
    }
}

/// A child that has ended, with its exit code or 128 + signal.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the status lives through the call.
    let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
    let code = if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
    (pid > 0).then_some((pid, code))
}

/// Sends a signal to one process.
pub fn send(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: touches no memory of this process.
    match unsafe { kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
