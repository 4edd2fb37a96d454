//! What the standard library cannot do: the only unsafe code of the runner. Declared here instead of taken from a
//! crate, because the runner is compiled alone, by the compiler and nothing else. 64-bit Linux only, as is the agent.

use std::{
    fs::File,
    io,
    os::{fd::FromRawFd, unix::process::CommandExt},
    process::Command,
    time::Duration,
};

pub const SIGINT: i32 = 2;
pub const SIGKILL: i32 = 9;
pub const SIGTERM: i32 = 15;
pub const SIGCHLD: i32 = 17;

/// For opening: reads give an error instead of waiting.
pub const O_NONBLOCK: i32 = 0o4000;

const O_CLOEXEC: i32 = 0o2_000_000;
const POLLIN: i16 = 1;
const POLLHUP: i16 = 16;

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

#[repr(C)]
struct PollFd {
    fd: i32,
    wanted: i16,
    found: i16,
}

unsafe extern "C" {
    fn poll(fds: *mut PollFd, count: usize, timeout: i32) -> i32;
    fn signalfd(fd: i32, set: *const SigSet, flags: i32) -> i32;
    fn umask(mask: u32) -> u32;
    fn getuid() -> u32;
    fn getgid() -> u32;
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

/// Readable when a held signal is there for [`next_signal`].
pub fn signal_file() -> io::Result<File> {
    // SAFETY: the set lives through the call; a descriptor that it gives is new and nobody else's.
    unsafe {
        match signalfd(-1, &watched(), O_NONBLOCK | O_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// Sleeps until one of the files has something to read, or its other end is gone, or `longest` is over. Says whether
/// there is something.
pub fn wait_readable(files: &[i32], longest: Option<Duration>) -> io::Result<bool> {
    let mut fds: Vec<PollFd> = files.iter().map(|fd| PollFd { fd: *fd, wanted: POLLIN, found: 0 }).collect();
    let timeout = longest.map_or(-1, |longest| i32::try_from(longest.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: the list lives through the call, and its length is told.
    match unsafe { poll(fds.as_mut_ptr(), fds.len(), timeout) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        found => Ok(found > 0),
    }
}

/// Somebody had the other end of this pipe since it was opened here, and nobody has it now.
pub fn is_hung_up(fd: i32) -> bool {
    let mut fds = [PollFd { fd, wanted: 0, found: 0 }];
    // SAFETY: the list lives through the call, and its length is told.
    let found = unsafe { poll(fds.as_mut_ptr(), fds.len(), 0) };
    found > 0 && fds[0].found & POLLHUP != 0
}

/// Takes these permissions from all files that are made from now on.
pub fn set_umask(mask: u32) {
    // SAFETY: touches no memory of this process.
    unsafe { umask(mask) };
}

/// User and group of this process.
pub fn user() -> (u32, u32) {
    // SAFETY: both only tell.
    unsafe { (getuid(), getgid()) }
}
