//! What run containers cannot reach, as rules of the host's packet filter. Which rules is decided here by pure functions;
//! [`make`] carries them out with `iptables`, which stands for nftables too where it is made so.
//!
//! ```text
//! DOCKER-USER  -i <bridge> → TERRAPOOL-<bridge>     what is passed on: not to metadata addresses
//! INPUT        -i <bridge> → TERRAPOOL-H-<bridge>   what is for the host itself: nothing but answers and DNS
//! ```
//!
//! The chains are filled anew in one step, so that rules of an older agent do not stay; what was made once is only read
//! the next time. DNS is left open everywhere: on some clouds the resolver has the very address of the metadata service.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::Command};

/// Longest wait of one command for whoever else changes rules.
const LOCK_WAIT: &str = "5";

/// Longest time of one command.
const DEADLINE: Duration = Duration::from_secs(15);

/// Where systems have their administrators' programs.
const PLACES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];

/// AWS, GCP, OpenStack and most others; ECS and EKS lie in it too. Then Azure's, then Alibaba's.
const METADATA: [&str; 3] = ["169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32"];

/// AWS, GCP, and whatever else is on the link.
const METADATA_6: [&str; 3] = ["fd00:ec2::254/128", "fd20:ce::254/128", "fe80::/10"];

/// Docker leaves this chain alone and asks it first.
const DOCKERS: &str = "DOCKER-USER";

/// Where packets that are passed on can be led to our chain, best first: without Docker's own rules there is no chain of
/// its.
const PASSED_ON: [&str; 2] = [DOCKERS, "FORWARD"];

/// What is to be blocked, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Interface of the network's bridge on the host, at most 15 bytes.
    pub bridge: String,
    /// The network has IPv6.
    pub ipv6: bool,
    pub metadata: bool,
    pub host: bool,
}

/// Rules that were made, and how the host shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub block: Block,
    /// Of each family; empty: it cannot be told whether they are still there.
    shown: Vec<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    fn metadata(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &METADATA,
            Self::V6 => &METADATA_6,
        }
    }

    fn reject(self) -> &'static str {
        match self {
            Self::V4 => "REJECT --reject-with icmp-admin-prohibited",
            Self::V6 => "REJECT --reject-with icmp6-adm-prohibited",
        }
    }
}

impl Block {
    fn families(&self) -> impl Iterator<Item = Family> {
        [Some(Family::V4), self.ipv6.then_some(Family::V6)].into_iter().flatten()
    }

    /// The lines about our chains, of all that `iptables-save` shows.
    fn ours(&self, shown: &str) -> Vec<String> {
        let chains = [self.forward_chain(), self.host_chain()];
        let is_ours = |line: &&str| {
            let mut words = line.split([' ', ':']);
            words.any(|word| chains.iter().any(|chain| word == chain))
        };
        shown.lines().filter(is_ours).map(str::to_owned).collect()
    }

    fn forward_chain(&self) -> String {
        format!("TERRAPOOL-{}", self.bridge)
    }

    fn host_chain(&self) -> String {
        format!("TERRAPOOL-H-{}", self.bridge)
    }

    /// For `iptables-restore --noflush`: both chains, emptied and filled in one step. `jumps` names the chains from which
    /// both must be led to already; else the step fails as a whole and changes nothing.
    fn script(&self, family: Family, jumps: Option<[&str; 2]>) -> String {
        let (forward, host) = (self.forward_chain(), self.host_chain());
        let mut lines = vec!["*filter".to_owned(), format!(":{forward} - [0:0]"), format!(":{host} - [0:0]")];
        let metadata: Vec<String> = match self.metadata {
            true => family.metadata().iter().map(|to| format!("-d {to} -j {}", family.reject())).collect(),
            false => Vec::new(),
        };
        let dns = ["udp", "tcp"].map(|protocol| format!("-p {protocol} -m {protocol} --dport 53 -j RETURN"));
        let mut add = |chain: &str, rule: &str| lines.push(format!("-A {chain} {rule}"));
        dns.iter().chain(&metadata).for_each(|rule| add(&forward, rule));
        add(&host, "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN");
        if family == Family::V6 {
            // Without it no neighbour finds another.
            add(&host, "-p ipv6-icmp -j RETURN");
        }
        dns.iter().chain(&metadata).for_each(|rule| add(&host, rule));
        if self.host {
            add(&host, &format!("-j {}", family.reject()));
        }
        for (parent, chain) in jumps.into_iter().flatten().zip([&forward, &host]) {
            lines.push(format!("-C {parent} -i {} -j {chain}", self.bridge));
        }
        lines.push("COMMIT\n".to_owned());
        lines.join("\n")
    }

    /// The arguments of a command about the jump to one of our chains; `command` begins with what to do and where from.
    fn jump<'a>(&'a self, command: &[&'a str], chain: &'a str) -> Vec<&'a str> {
        let parts = [&["-w", LOCK_WAIT], command, &["-i", self.bridge.as_str(), "-j", chain]];
        parts.concat()
    }
}

/// Blocks what is to be blocked. Harmless when repeated, and made for it: others flush rules as they like. What was made
/// before and is still there is left alone: every container's start waits for this, and looking takes a fifth of the time.
///
/// # Errors
/// Why it cannot be, in words.
pub(super) async fn make(block: &Block, before: Option<Made>) -> Result<Made, String> {
    if !Path::new("/sys/class/net").join(&block.bridge).exists() {
        return Err(format!(
            "the engine's network interface {} is not on the agent's side: give the agent the network of the engine's host",
            block.bridge
        ));
    }
    if let Some(before) = before.filter(|made| made.block == *block && !made.shown.is_empty())
        && show(block).await == before.shown
    {
        return Ok(before);
    }
    for family in block.families() {
        make_family(block, family).await?;
    }
    Ok(Made { block: block.clone(), shown: show(block).await })
}

/// Our rules of each family, as the host shows them; empty when it cannot show one of them.
async fn show(block: &Block) -> Vec<Vec<String>> {
    let mut shown = Vec::new();
    for family in block.families() {
        let Ok(program) = find(&format!("{}-save", family.program())) else { return Vec::new() };
        match run(&program, &["-t", "filter"], "").await {
            Ok(text) => shown.push(block.ours(&text)),
            Err(_) => return Vec::new(),
        }
    }
    shown
}

async fn make_family(block: &Block, family: Family) -> Result<(), String> {
    let program = find(family.program())?;
    let restore = find(&format!("{}-restore", family.program()))?;
    let restore = async |script: String| run(&restore, &["-w", LOCK_WAIT, "--noflush"], &script).await.map(drop);
    // Mostly the jumps are there: then it is one program instead of four.
    if restore(block.script(family, Some([DOCKERS, "INPUT"]))).await.is_ok() {
        return Ok(());
    }
    restore(block.script(family, None)).await?;
    let (forward, host) = (block.forward_chain(), block.host_chain());
    for (parents, chain) in [(PASSED_ON.as_slice(), &forward), (&["INPUT"], &host)] {
        jump(block, &program, parents, chain).await?;
    }
    Ok(())
}

/// The first of these chains that there is sends its packets to ours.
async fn jump(block: &Block, program: &Path, parents: &[&str], chain: &str) -> Result<(), String> {
    let mut last = String::new();
    for parent in parents {
        if run(program, &block.jump(&["-C", parent], chain), "").await.is_ok() {
            return Ok(());
        }
        match run(program, &block.jump(&["-I", parent, "1"], chain), "").await {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Takes the rules of an earlier agent away, as far as there are any.
pub(super) async fn clear(block: &Block) {
    for program in block.families().filter_map(|family| find(family.program()).ok()) {
        // An error means that there is no such rule or chain.
        let quietly = async |arguments: &[&str]| drop(run(&program, arguments, "").await);
        for (parents, chain) in [(PASSED_ON.as_slice(), block.forward_chain()), (&["INPUT"], block.host_chain())] {
            for parent in parents {
                quietly(&block.jump(&["-D", parent], &chain)).await;
            }
            for command in ["-F", "-X"] {
                quietly(&["-w", LOCK_WAIT, command, &chain]).await;
            }
        }
    }
}

fn find(program: &str) -> Result<PathBuf, String> {
    let mut paths = PLACES.iter().map(|place| Path::new(place).join(program));
    paths.find(|path| path.exists()).ok_or_else(|| format!("`{program}` is not installed on the agent's host"))
}

/// Gives what the program says.
async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let shown = format!("{} {}", program.display(), arguments.join(" "));
    let failed = |error: std::io::Error| format!("`{shown}` could not be started: {error}");
    let mut command = Command::new(program);
    command.args(arguments).env_clear().kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // What it does not read, it complains about itself.
            drop(stdin.write_all(input.as_bytes()).await);
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(DEADLINE, work).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => return Err(format!("`{shown}` took longer than {} s", DEADLINE.as_secs())),
    };
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Err(format!("`{shown}` failed: {}", said.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(metadata: bool, host: bool) -> Block {
        Block { bridge: "br-terrapool".to_owned(), ipv6: true, metadata, host }
    }

    #[test]
    fn both_chains_are_filled_in_one_step() {
        let wanted = "*filter
:TERRAPOOL-br-terrapool - [0:0]
:TERRAPOOL-H-br-terrapool - [0:0]
-A TERRAPOOL-br-terrapool -p udp -m udp --dport 53 -j RETURN
-A TERRAPOOL-br-terrapool -p tcp -m tcp --dport 53 -j RETURN
-A TERRAPOOL-br-terrapool -d 169.254.0.0/16 -j REJECT --reject-with icmp-admin-prohibited
-A TERRAPOOL-br-terrapool -d 168.63.129.16/32 -j REJECT --reject-with icmp-admin-prohibited
-A TERRAPOOL-br-terrapool -d 100.100.100.200/32 -j REJECT --reject-with icmp-admin-prohibited
-A TERRAPOOL-H-br-terrapool -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A TERRAPOOL-H-br-terrapool -p udp -m udp --dport 53 -j RETURN
-A TERRAPOOL-H-br-terrapool -p tcp -m tcp --dport 53 -j RETURN
-A TERRAPOOL-H-br-terrapool -d 169.254.0.0/16 -j REJECT --reject-with icmp-admin-prohibited
-A TERRAPOOL-H-br-terrapool -d 168.63.129.16/32 -j REJECT --reject-with icmp-admin-prohibited
-A TERRAPOOL-H-br-terrapool -d 100.100.100.200/32 -j REJECT --reject-with icmp-admin-prohibited
-A TERRAPOOL-H-br-terrapool -j REJECT --reject-with icmp-admin-prohibited
COMMIT
";
        assert_eq!(block(true, true).script(Family::V4, None), wanted);
        let checks = "-C DOCKER-USER -i br-terrapool -j TERRAPOOL-br-terrapool
-C INPUT -i br-terrapool -j TERRAPOOL-H-br-terrapool
COMMIT
";
        let checked = block(true, true).script(Family::V4, Some([DOCKERS, "INPUT"]));
        assert_eq!(checked, wanted.replace("COMMIT\n", checks));
    }

    #[test]
    fn of_what_the_host_shows_only_our_chains_count() {
        let ours = "-A DOCKER-USER -i br-terrapool -j TERRAPOOL-br-terrapool
:TERRAPOOL-H-br-terrapool - [0:0]
-A TERRAPOOL-H-br-terrapool -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN";
        let others = "# Generated by iptables-save on Fri
*filter
:INPUT ACCEPT [7:40]
-A DOCKER-USER -i br-terrapool2 -j TERRAPOOL-br-terrapool2
-A DOCKER-USER -j RETURN
COMMIT";
        let found = block(true, true).ours(&format!("{others}\n{ours}\n{others}"));
        assert_eq!(found, ours.lines().collect::<Vec<_>>());
    }

    #[test]
    fn each_block_can_be_had_without_the_other() {
        let (metadata, host) =
            (block(true, false).script(Family::V4, None), block(false, true).script(Family::V4, None));
        assert!(metadata.contains("169.254.0.0/16") && !metadata.contains("-br-terrapool -j REJECT"), "{metadata}");
        assert!(!host.contains("169.254.0.0/16") && host.contains("-H-br-terrapool -j REJECT"), "{host}");
    }

    #[test]
    fn ipv6_keeps_its_neighbours_and_loses_the_metadata() {
        let script = block(true, true).script(Family::V6, None);
        for rule in ["-p ipv6-icmp -j RETURN", "-d fd00:ec2::254/128 -j REJECT", "-d fe80::/10 -j REJECT"] {
            assert!(script.contains(rule), "{script}");
        }
    }

    #[test]
    fn names_of_chains_are_not_longer_than_the_kernel_takes() {
        let longest = Block { bridge: "x".repeat(15), ..block(true, true) };
        assert!(longest.forward_chain().len() <= 28 && longest.host_chain().len() <= 28);
    }

    #[test]
    fn commands_are_made_of_arguments() {
        let block = block(true, true);
        assert_eq!(
            block.jump(&["-I", "INPUT", "1"], "X"),
            ["-w", "5", "-I", "INPUT", "1", "-i", "br-terrapool", "-j", "X"]
        );
        assert_eq!(block.jump(&["-C", "INPUT"], "X"), ["-w", "5", "-C", "INPUT", "-i", "br-terrapool", "-j", "X"]);
    }
}
