//! From facts to findings: what is well, what is not, and the mend. Pure.

use serde::Serialize;

use super::facts::{Answer, Cgroup, Data, Facts, NoConnection, TlsTrouble};
use crate::{
    agent::{
        engine::Source,
        executor::{
            Choice,
            look::{DefaultImage, Engine, Sight},
        },
        poller::MIN_FREE,
    },
    http,
};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// The agent works, but not as well as it could, or not for long.
    Warn,
    /// The agent does not work.
    Fail,
}

impl Level {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name of what was looked at, as `clock`.
    pub check: &'static str,
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// Free bytes below which an image or a large state may fill the disk.
const SCARCE: u64 = 2 << 30;

/// Days of a token or certificate after which it is time for another.
const SOON: i64 = 7;

const DAY: i64 = 24 * 3600;

/// Seconds by which clocks may differ unnoticed, and those that make certificates and signatures fail.
const CLOCK: (i64, i64) = (30, 300);

fn ok(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding { check, level: Level::Ok, detail: detail.into(), mend: None }
}

fn warn(check: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { check, level: Level::Warn, detail: detail.into(), mend: Some(mend.into()) }
}

fn fail(check: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { check, level: Level::Fail, detail: detail.into(), mend: Some(mend.into()) }
}

/// The findings, in the order in which they are to be mended. What cannot be told because of an earlier failure is
/// left out.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![address(facts), proxy(facts), names(facts)];
    findings.extend(connection(facts));
    findings.extend(tls(facts));
    findings.extend(clock(facts));
    findings.push(token(facts));
    findings.extend(data(&facts.data));
    findings.push(executor(facts));
    findings.extend(image(facts));
    findings.extend(engines(facts));
    findings.extend(downloads(facts));
    findings.push(cgroup(facts.cgroup));
    findings
}

fn address(facts: &Facts) -> Finding {
    if http::is_readable_on_the_way(&facts.url) {
        let mend = "give the control plane a certificate and the agent its https address";
        return warn("address", format!("{}: tokens can be read on the way", facts.url), mend);
    }
    ok("address", facts.url.as_str())
}

fn proxy(facts: &Facts) -> Finding {
    match &facts.proxy {
        None => ok("proxy", "none: the control plane is reached directly"),
        Some(proxy) => ok("proxy", format!("{}:{}, from the environment", proxy.host, proxy.port)),
    }
}

/// The host that is connected to.
fn peer(facts: &Facts) -> String {
    match &facts.proxy {
        Some(proxy) => format!("the proxy {}", proxy.host),
        None => facts.url.host_str().unwrap_or("(no host)").to_owned(),
    }
}

fn names(facts: &Facts) -> Finding {
    let peer = peer(facts);
    match &facts.addresses {
        Ok(addresses) => ok("dns", format!("{peer} is {}", addresses.join(", "))),
        Err(error) => {
            let mend = "correct the name, or this host's /etc/resolv.conf or /etc/hosts; `getent hosts NAME` shows \
                        what it finds";
            fail("dns", format!("{peer} has no address: {error}"), mend)
        }
    }
}

fn connection(facts: &Facts) -> Option<Finding> {
    let peer = peer(facts);
    let port =
        facts.proxy.as_ref().map_or_else(|| facts.url.port_or_known_default().unwrap_or(443), |proxy| proxy.port);
    Some(match facts.connection.as_ref()? {
        Ok(()) => ok("tcp", format!("{peer} accepts connections at port {port}")),
        Err(NoConnection::Refused) => fail(
            "tcp",
            format!("{peer} refuses connections at port {port}"),
            "start what is to listen there, or correct the port",
        ),
        Err(NoConnection::TimedOut) => fail(
            "tcp",
            format!("{peer} does not answer at port {port}"),
            "let this host out to it in the firewall; only connections from here are needed",
        ),
        Err(NoConnection::Other(error)) => {
            fail("tcp", format!("{peer}, port {port}: {error}"), "give this host a route to it")
        }
    })
}

fn tls(facts: &Facts) -> Option<Finding> {
    if !matches!(facts.connection, Some(Ok(()))) {
        return None;
    }
    if let Answer::Tls(trouble) = &facts.answer {
        let (detail, mend) = match trouble {
            TlsTrouble::UnknownIssuer => (
                "nobody whom this host trusts has signed the control plane's certificate",
                "give the certificate of its issuer: --ca-file FILE",
            ),
            TlsTrouble::WrongName => (
                "the certificate is of another name",
                "use a name in the address that the certificate has, or make a certificate for this one",
            ),
            TlsTrouble::Expired => ("the certificate has expired", "renew it at the control plane"),
            TlsTrouble::NotYetValid => ("the certificate is not valid yet", "set this host's clock, or the other's"),
            TlsTrouble::NoTls => (
                "who answers does not speak TLS",
                "correct the port; plain http is for a control plane on this machine only",
            ),
            TlsTrouble::Other(error) => {
                return Some(fail("tls", error.as_str(), "see the control plane's log and certificate"));
            }
        };
        return Some(fail("tls", detail, mend));
    }
    if let Answer::None(error) = &facts.answer {
        let mend = "see the control plane's log, and whether a proxy or firewall stands in between";
        return Some(fail("answer", format!("the control plane did not answer: {error}"), mend));
    }
    let ends = facts.certificate_ends?;
    let days = (ends - facts.now) / DAY;
    Some(if days < SOON {
        warn("tls", format!("trusted; the certificate ends in {days} days"), "renew it at the control plane")
    } else {
        ok("tls", format!("trusted; the certificate holds for {days} days"))
    })
}

fn clock(facts: &Facts) -> Option<Finding> {
    const MEND: &str = "set it by NTP: `timedatectl set-ntp true`, with chrony or another client installed";
    let ahead = facts.clock_ahead?;
    let word = if ahead < 0 { "behind" } else { "ahead of" };
    let detail = format!("{} s {word} the control plane's", ahead.abs());
    Some(match ahead.abs() {
        off if off <= CLOCK.0 => ok("clock", detail),
        off if off <= CLOCK.1 => warn("clock", detail, MEND),
        _ => fail("clock", detail, MEND),
    })
}

fn token(facts: &Facts) -> Finding {
    const MEND: &str = "make a token on the pool's page and give it: `terrapool agent configure --token -`";
    if !facts.has_token {
        return fail("token", "there is none", MEND);
    }
    match &facts.answer {
        Answer::Pool(pool) => {
            let name = &pool.pool_name;
            let days = pool.token_expires_at_ms.map(|ends| (ends - pool.server_time_ms) / 1000 / DAY);
            let open = facts.token_file_mode.filter(|mode| mode & 0o077 != 0);
            match (days, open) {
                (_, Some(mode)) => warn(
                    "token",
                    format!("of pool {name}; others on this host may read its file (mode {:03o})", mode & 0o777),
                    "chmod 600 the file",
                ),
                (Some(days), None) if days < SOON => {
                    let detail =
                        format!("of pool {name}; it ends in {days} days, after which no agent registers with it");
                    warn("token", detail, MEND)
                }
                (Some(days), None) => ok("token", format!("of pool {name}, for {days} days")),
                (None, None) => ok("token", format!("of pool {name}, without end")),
            }
        }
        Answer::Unauthorized(detail) => fail("token", format!("not accepted: {detail}"), MEND),
        Answer::Upgrade(detail) => fail("token", detail.as_str(), "install the agent of the control plane's release"),
        Answer::Other(detail) => fail(
            "token",
            format!("could not be checked: {detail}"),
            "correct the address; a control plane of an older release does not know this check",
        ),
        Answer::Tls(_) | Answer::None(_) => {
            warn("token", "could not be checked without an answer", "mend the connection first")
        }
    }
}

fn data(data: &Data) -> Vec<Finding> {
    let path = data.path.display();
    let writable = match &data.writable {
        Ok(()) => ok("data", format!("{path} can be written to")),
        Err(error) => fail(
            "data",
            format!("{path}: {error}"),
            "run this as the agent's user, as root for the service; or name another directory (--data)",
        ),
    };
    let space = data.free.map(|free| {
        let detail = format!("{} MiB are free in {path}", free >> 20);
        match free {
            free if free < MIN_FREE => fail("disk", format!("{detail}: no jobs are taken"), "make room there"),
            free if free < SCARCE => warn("disk", detail, "make room there: configurations and states are kept in it"),
            _ => ok("disk", detail),
        }
    });
    std::iter::once(writable).chain(space).collect()
}

fn executor(facts: &Facts) -> Finding {
    const PROCESS: &str = "runs are plain processes without isolation";
    let trouble = match (&facts.docker, facts.executor) {
        (None, Choice::Process) => {
            return warn("executor", PROCESS, "install Docker and configure `--executor docker`");
        }
        (None, _) => return ok("executor", "runs are executed in the other container of the Pod"),
        (Some(Sight::Answers(engine)), _) => return docker(engine),
        (Some(Sight::Absent { host }), _) => {
            (format!("no Docker engine at {host}"), "install and start it: `systemctl enable --now docker`".to_owned())
        }
        (Some(Sight::Forbidden { host, group }), _) => {
            let join = match group.as_deref() {
                Some("root") | None => String::new(),
                Some(group) => {
                    format!(", or put its user into the group {group}: `usermod --append --groups {group} USER`")
                }
            };
            (format!("this user may not use {host}"), format!("run the agent as root, as the service does{join}"))
        }
        (Some(Sight::Silent { host, detail }), _) => {
            (format!("no proper answer from Docker at {host}: {detail}"), "see `systemctl status docker`".to_owned())
        }
    };
    match facts.executor {
        Choice::Auto => warn("executor", format!("{}: {PROCESS}", trouble.0), trouble.1),
        _ => fail("executor", trouble.0, trouble.1),
    }
}

fn docker(engine: &Engine) -> Finding {
    let version = &engine.version;
    if !engine.limits_memory || !engine.limits_processes {
        return warn(
            "executor",
            format!("Docker {version} answers, but cannot limit the memory or processes of runs"),
            "see the line `cgroup`, and the warnings at the end of `docker info`",
        );
    }
    if can_hang(version) {
        return warn(
            "executor",
            format!("Docker {version} answers, but can hang for good when containers end at the same time"),
            "update the engine to 23.0 or later; until then `systemctl restart docker` when no run starts any more",
        );
    }
    ok("executor", format!("Docker {version} answers"))
}

/// Docker's network code could wait for itself when endpoints were deleted, until 23.0 (moby/moby#42545). Versions between
/// 1 and 17 are those of other engines.
fn can_hang(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    matches!(major, Some(1 | 17..=22))
}

fn engines(facts: &Facts) -> Option<Finding> {
    if facts.executor == Choice::Sidecar {
        return None;
    }
    if !facts.engines.is_empty() {
        return Some(ok("engine", facts.engines.join(", ")));
    }
    if !facts.sources.is_empty() {
        // Whether that can be is another line.
        return Some(ok("engine", "none on this host: what workspaces name by an exact version is downloaded"));
    }
    let mend = "install terraform or tofu in a folder of the agent's PATH, name a folder of them (--engine-dir), or let \
                the agent download them (--engine-download)";
    Some(if has_docker(facts) {
        // A run's image may have the engine that this host lacks.
        warn("engine", "neither terraform nor tofu on this host: only workspaces whose image has one can run", mend)
    } else {
        fail("engine", "neither terraform nor tofu on this host", mend)
    })
}

/// Runs are executed in containers here.
fn has_docker(facts: &Facts) -> bool {
    matches!(facts.docker, Some(Sight::Answers(_)))
}

fn downloads(facts: &Facts) -> Option<Finding> {
    if facts.executor == Choice::Sidecar || facts.sources.is_empty() {
        return None;
    }
    let at = |source: &Source| format!("{} from {}", source.programs, source.address);
    let silent = facts.sources.iter().filter_map(|source| Some((source, source.answers.as_ref().err()?)));
    let silent: Vec<String> = silent.map(|(source, why)| format!("{}: {why}", at(source))).collect();
    if silent.is_empty() {
        let all = facts.sources.iter().map(at).collect::<Vec<_>>().join(", ");
        return Some(ok("download", format!("{all}: answers")));
    }
    let detail = format!("no answer for {}", silent.join("; "));
    let mend = "let this host out to it, set the proxy that leads there (HTTPS_PROXY, for the service in agent.env), name \
                a mirror (--engine-mirror), or say that nothing is downloaded (--engine-download=false)";
    // What is on the host still runs.
    let all_silent = silent.len() == facts.sources.len();
    Some(if all_silent && facts.engines.is_empty() && !has_docker(facts) {
        fail("download", detail, mend)
    } else {
        warn("download", detail, mend)
    })
}

fn image(facts: &Facts) -> Option<Finding> {
    Some(match facts.image.as_ref().filter(|_| has_docker(facts))? {
        DefaultImage::Minimal { shell: true } => {
            ok("image", "none is configured: runs that name none get a minimal one, with this host's busybox")
        }
        DefaultImage::Minimal { shell: false } => ok(
            "image",
            "none is configured: runs that name none get a minimal one without a shell (local-exec needs a run image, or a \
             static busybox on this host)",
        ),
        DefaultImage::Here { image } => ok("image", format!("{image} is on this host")),
        DefaultImage::InRegistry { image } => ok("image", format!("{image} can be pulled")),
        DefaultImage::Unusable { image, detail } => fail(
            "image",
            format!("{image}: {detail}"),
            "correct --default-image or --allowed-image, give the engine a way to the registry, or load it with `docker load`",
        ),
    })
}

fn cgroup(cgroup: Cgroup) -> Finding {
    let Cgroup { version, memory, pids } = cgroup;
    let Some(version) = version else {
        return warn("cgroup", "this kernel has no control groups: runs have no limits", "boot a kernel that has them");
    };
    let missing: Vec<&str> =
        [(memory, "memory"), (pids, "pids")].iter().filter(|(has, _)| !has).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return ok("cgroup", format!("version {version}, limits of memory and processes"));
    }
    warn(
        "cgroup",
        format!("version {version} without {}: runs are not limited in it", missing.join(" and ")),
        "boot with `cgroup_enable=memory swapaccount=1`, and on CentOS 7 with a kernel of 7.4 or later",
    )
}

#[cfg(test)]
mod tests;
