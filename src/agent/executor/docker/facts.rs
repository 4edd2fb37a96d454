//! What the engine says of itself, and whether it can do what is asked of it. Pure.

use std::collections::HashMap;

use bollard::models::SystemInfo;

use super::super::{Error, Isolation, Result, Users};

/// What matters of the engine's description of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) cores: Option<i64>,
    pub(super) selinux: bool,
    /// The engine maps users of containers to others of the host, one by one: not as a rootless one does.
    pub(super) maps_users: bool,
    /// The host's user and group that users of containers are counted from, where the engine maps them.
    pub(super) base: Option<(u32, u32)>,
    /// The engine runs as this user: root in a container is this user outside.
    pub(super) rootless: bool,
    /// Names of its OCI runtimes.
    runtimes: Vec<String>,
    /// Its storage can limit a container's own layer.
    quota: bool,
}

impl Facts {
    pub(super) fn of(info: &SystemInfo) -> Self {
        let options = info.security_options.as_deref().unwrap_or_default();
        let has =
            |name: &str| options.iter().any(|option| option.split(',').any(|part| part == format!("name={name}")));
        let rootless = has("rootless");
        let mut runtimes: Vec<String> = info.runtimes.iter().flat_map(HashMap::keys).cloned().collect();
        runtimes.sort();
        Self {
            cores: info.ncpu,
            selinux: has("selinux"),
            maps_users: has("userns") && !rootless,
            base: info.docker_root_dir.as_deref().and_then(base),
            rootless,
            runtimes,
            quota: has_quota(info),
        }
    }

    /// Whether the engine can do what is asked of it.
    ///
    /// # Errors
    /// [`Error::Refused`] says what it cannot do, and the mend.
    pub(super) fn check(&self, isolation: &Isolation) -> Result<()> {
        if let Some(runtime) = isolation.runtime.as_ref().filter(|runtime| !self.runtimes.contains(runtime)) {
            let known = self.runtimes.join(", ");
            return Err(Error::Refused(format!(
                "the Docker engine has no OCI runtime `{runtime}` (--container-runtime): it has {known}. Install it and \
                 name it in the engine's daemon.json under `runtimes`"
            )));
        }
        if isolation.disk_bytes.is_some() && !self.quota {
            return Err(Error::Refused(
                "the Docker engine's storage cannot limit a container (--run-disk): that takes the driver overlay2 on xfs \
                 with pquota, btrfs or zfs"
                    .to_owned(),
            ));
        }
        let mapped = isolation.users == Users::Engine && self.maps_users;
        if mapped && !(self.base.is_some() && rustix::process::geteuid().is_root()) {
            return Err(Error::Refused(
                "files cannot be given to the users that the Docker engine maps to (--userns=engine): the agent has to be \
                 root, and the engine's data directory named after the users as userns-remap does"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// An engine that maps users keeps its data below `<uid>.<gid>`, so named after the first of each.
fn base(data: &str) -> Option<(u32, u32)> {
    let (uid, gid) = data.trim_end_matches('/').rsplit('/').next()?.split_once('.')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

fn has_quota(info: &SystemInfo) -> bool {
    let status = |name: &str| {
        let mut rows = info.driver_status.iter().flatten();
        rows.find(|row| row.first().is_some_and(|key| key == name)).and_then(|row| row.get(1)).map(String::as_str)
    };
    match info.driver.as_deref() {
        Some("btrfs" | "zfs") => true,
        Some("overlay2") => status("Backing Filesystem") == Some("xfs"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: impl FnOnce(&mut SystemInfo)) -> Facts {
        let mut info = SystemInfo {
            runtimes: Some(["runc", "runsc"].map(|name| (name.to_owned(), Default::default())).into()),
            driver: Some("overlay2".to_owned()),
            driver_status: Some(vec![vec!["Backing Filesystem".to_owned(), "extfs".to_owned()]]),
            docker_root_dir: Some("/var/lib/docker".to_owned()),
            ..SystemInfo::default()
        };
        change(&mut info);
        Facts::of(&info)
    }

    #[test]
    fn what_the_engine_cannot_do_is_refused_at_the_start() {
        let facts_now = facts(|_| {});
        facts_now.check(&Isolation::default()).unwrap();
        facts_now.check(&Isolation { runtime: Some("runsc".to_owned()), ..Isolation::default() }).unwrap();
        let error =
            facts_now.check(&Isolation { runtime: Some("kata".to_owned()), ..Isolation::default() }).unwrap_err();
        assert!(error.to_string().contains("`kata`") && error.to_string().contains("runc, runsc"), "{error}");
        let disk = Isolation { disk_bytes: Some(1), ..Isolation::default() };
        assert!(facts_now.check(&disk).unwrap_err().to_string().contains("--run-disk"));
        let xfs = facts(|info| info.driver_status = Some(vec![vec!["Backing Filesystem".into(), "xfs".into()]]));
        xfs.check(&disk).unwrap();
        let maps = facts(|info| info.security_options = Some(vec!["name=userns".to_owned()]));
        let engine = Isolation { users: Users::Engine, ..Isolation::default() };
        // Its data directory does not say whom it maps to.
        assert!(maps.check(&engine).unwrap_err().to_string().contains("--userns=engine"));
    }

    #[test]
    fn an_engines_data_directory_tells_whom_it_maps_to() {
        assert_eq!(base("/var/lib/docker/231072.231073"), Some((231_072, 231_073)));
        for data in ["/var/lib/docker", "/var/lib/docker.d/x", "/var/lib/docker/a.b", "", "/"] {
            assert_eq!(base(data), None, "{data}");
        }
    }
}
