//! Configurations and job directories made by somebody hostile.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tar::EntryType;
use terrapool::{
    agent::jobdir::{Archive, JobDir, Placement, unpack},
    api::{
        agent::{ExecutorKind, reason},
        job::Stage,
    },
};

use crate::support::jobs::{chain, slug, spec};

/// One entry: kind, path, content or what the link leads to.
type Made<'a> = (EntryType, &'a str, &'a str);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// A tar.gz with exactly these headers: the tar crate's own writer refuses what is tried here.
fn archive(entries: &[Made<'_>]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    for (kind, path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        let is_link = matches!(*kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        let body = if is_link || *kind == DIR { &[] } else { content.as_bytes() };
        header.set_size(body.len() as u64);
        header.set_cksum();
        gz.write_all(header.as_bytes()).unwrap();
        gz.write_all(body).unwrap();
        gz.write_all(&vec![0; body.len().next_multiple_of(512) - body.len()]).unwrap();
    }
    gz.write_all(&[0; 1024]).unwrap();
    gz.finish().unwrap()
}

fn unpacked(archive: &[u8], limits: unpack::Limits) -> (tempfile::TempDir, Result<(), String>) {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("config");
    fs::create_dir(&target).unwrap();
    let result = unpack::unpack(archive, &target, limits, None).map_err(|error| chain(&error));
    let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["config"], "something was written beside the target");
    (dir, result)
}

#[test]
fn hostile_archives_are_refused_with_the_reason() {
    let far = "a/".repeat(40) + "x";
    let table: &[(&[Made<'_>], &str)] = &[
        (&[(FILE, "../x", "")], "the path `../x` leads out"),
        (&[(FILE, "a/../../x", "")], "leads out"),
        (&[(FILE, "a/../x", "")], "leads out"),
        (&[(FILE, "/etc/x", "")], "the path `/etc/x` leads out"),
        (&[(DIR, "..", "")], "leads out"),
        (&[(LINK, "a", "/etc")], "the link `a` leads out"),
        (&[(LINK, "a", "..")], "the link `a` leads out"),
        (&[(LINK, "a/b", "../../x")], "the link `a/b` leads out"),
        (&[(LINK, "a", "/etc"), (FILE, "a/passwd", "x")], "leads out"),
        (&[(DIR, "d", ""), (LINK, "a", "d"), (FILE, "a/x", "x")], "`a` is in it twice"),
        // A way back to the root that looks deep on paper.
        (
            &[(DIR, "a/b/c", ""), (LINK, "a/b/c/up", "../../.."), (LINK, "out", "a/b/c/up/../x")],
            "the link `out` leads out",
        ),
        (&[(LINK, "a", "b"), (LINK, "b", "a")], "leads out"),
        (&[(LINK, "a", "")], "leads nowhere"),
        (&[(HARD, "a", "/etc/passwd")], "the path `/etc/passwd` leads out"),
        (&[(HARD, "a", "../x")], "leads out"),
        (&[(HARD, "a", "not-there")], "leads to no file before it"),
        (&[(LINK, "l", "f"), (HARD, "a", "l")], "leads to no file before it"),
        (&[(EntryType::Char, "null", "")], "neither a file nor"),
        (&[(EntryType::Block, "sda", "")], "neither a file nor"),
        (&[(EntryType::Fifo, "pipe", "")], "neither a file nor"),
        (&[(EntryType::GNUSparse, "s", "")], "s"),
        (&[(FILE, "a", ""), (FILE, "a/b", "")], "`a` is in it twice"),
        (&[(DIR, "a", ""), (FILE, "a", "")], "`a` is in it twice"),
        (&[(FILE, "", "x")], "has no name"),
        (&[(EntryType::XHeader, "p", "24 GNU.sparse.size=100\n\n")], ""),
        (&[(EntryType::XHeader, "p", "18 path=../../etc\n"), (FILE, "x", "")], "leads out"),
        (&[(EntryType::GNULongName, "p", "/etc/passwd"), (FILE, "x", "")], "leads out"),
        (&[(EntryType::GNULongLink, "p", "/etc"), (LINK, "x", "a")], "leads out"),
        (&[(EntryType::XHeader, "p", "20 size=99999999999\n"), (FILE, "x", "")], "larger than 8 GiB"),
        // The last of several names counts, and each is looked at.
        (&[(EntryType::XHeader, "p", "9 path=a\n18 path=../../etc\n"), (FILE, "x", "")], "leads out"),
        (&[(EntryType::XHeader, "p", "17 linkpath=/etc\n"), (LINK, "x", "a")], "the link `x` leads out"),
        (&[(EntryType::XHeader, "p", "17 linkpath=/etc\n"), (HARD, "x", "a")], "the path `/etc` leads out"),
        (&[(EntryType::XHeader, "p", "9 path=\0\n"), (FILE, "x", "")], "cannot be"),
        (&[(EntryType::XHeader, "p", "no length"), (FILE, "x", "")], "an extended header is damaged"),
        (&[(EntryType::GNULongName, "p", "../x"), (DIR, "x", "")], "leads out"),
        (&[(EntryType::GNULongName, "p", "a\0b"), (FILE, "x", "")], "cannot be"),
        (&[(FILE, "//etc/x", "")], "leads out"),
        (&[(FILE, "./../x", "")], "leads out"),
        (&[(FILE, "..", "x")], "leads out"),
        (&[(LINK, "a", "b/../../x"), (DIR, "b", "")], "the link `a` leads out"),
        (&[(LINK, "a", "a")], "leads out"),
        (&[(LINK, "a", "b"), (LINK, "b", "c"), (LINK, "c", "/")], "leads out"),
        (&[(LINK, "d", ".."), (HARD, "h", "d/x")], "leads to no file before it"),
        (&[(HARD, "a", "a")], "leads to no file before it"),
        (&[(DIR, "d", ""), (HARD, "a", "d")], "leads to no file before it"),
        (&[(LINK, "a/b", "x"), (FILE, "a", "x")], "`a` is in it twice"),
        (&[(LINK, "", "x")], "has no name"),
        (&[(EntryType::Char, "../tty", "")], "leads out"),
        (&[(EntryType::new(b'V'), "volume", "")], "neither a file nor"),
        (&[(EntryType::new(b'M'), "more", "")], "neither a file nor"),
        (&[(EntryType::new(b'D'), "dump", "")], "neither a file nor"),
    ];
    for (entries, wanted) in table {
        let (_dir, result) = unpacked(&archive(entries), unpack::Limits::default());
        let error = result.expect_err(&format!("{entries:?} was unpacked"));
        assert!(
            error.starts_with("the configuration cannot be used: ") && error.contains(wanted),
            "{entries:?}: {error}"
        );
    }
    assert!(table.len() >= 50, "{} tricks", table.len());
    let (_dir, result) = unpacked(&archive(&[(FILE, &far, "x"), (LINK, "l", &far)]), unpack::Limits::default());
    result.unwrap();
}

#[test]
fn honest_archives_come_out_as_they_went_in() {
    let entries: &[Made<'_>] = &[
        (DIR, "./", ""),
        (FILE, "./main.tf", "one"),
        (FILE, "main.tf", "two"),
        (LINK, "modules/link", "../main.tf"),
        (LINK, "dangling", "modules/later"),
        (HARD, "copy.tf", "main.tf"),
        (EntryType::XGlobalHeader, "pax", "17 comment=hello\n"),
        (EntryType::XHeader, "p", "18 path=long/name\n"),
        (FILE, "short", "three"),
    ];
    let (dir, result) = unpacked(&archive(entries), unpack::Limits::default());
    result.unwrap();
    let read = |name: &str| fs::read_to_string(dir.path().join("config").join(name)).unwrap();
    assert_eq!(["main.tf", "modules/link", "copy.tf", "long/name"].map(read), ["two", "two", "two", "three"]);
    let meta = fs::metadata(dir.path().join("config/main.tf")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o755, 1));
}

#[test]
fn bombs_are_noticed_before_the_disk_is_full() {
    let zeros = |bytes: u64| {
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        let mut header = tar::Header::new_gnu();
        header.set_path("bomb").unwrap();
        header.set_size(bytes);
        header.set_cksum();
        gz.write_all(header.as_bytes()).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes.min(64 << 20)), &mut gz).unwrap();
        gz.finish().unwrap()
    };
    let limits = unpack::Limits { entries: 10, bytes: 1 << 20 };
    for (bomb, wanted) in [
        (zeros(10_u64 << 30), "more than 1048576 bytes"),
        (zeros(2 << 20), "more than 1048576 bytes"),
        (archive(&[(FILE, "a", ""); 11]), "more than 10 entries"),
        (archive(&[(FILE, "a", "x".repeat(600 << 10).as_str()); 2]), "more than 1048576 bytes"),
        (archive(&[(EntryType::XHeader, "p", "x".repeat(1 << 20).as_str())]), "header in it is too long"),
        (archive(&[(EntryType::GNULongName, "p", "x".repeat(1 << 20).as_str())]), "header in it is too long"),
        (zeros(1 << 19)[..200].to_vec(), "not a whole tar.gz"),
        (b"not an archive".to_vec(), "tar.gz"),
    ] {
        let (dir, result) = unpacked(&bomb, limits);
        let error = result.expect_err(wanted);
        assert!(error.contains(wanted), "{error}");
        let written = fs::metadata(dir.path().join("config/bomb")).map_or(0, |meta| meta.len());
        assert!(written <= limits.bytes + 1, "{written} bytes were written");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Whatever links are in it: nothing that comes out leads out.
    #[test]
    fn no_link_leads_out(links in prop::collection::vec(("[a-c](/[a-c]){0,2}", "((\\.\\.|[a-c])/){0,4}(\\.\\.|[a-c])"), 1..8)) {
        let entries: Vec<Made<'_>> = links.iter().map(|(path, to)| (LINK, path.as_str(), to.as_str())).collect();
        let (dir, result) = unpacked(&archive(&entries), unpack::Limits::default());
        if result.is_ok() {
            let root = dir.path().join("config").canonicalize().unwrap();
            for (path, _) in &links {
                if let Ok(real) = root.join(path).canonicalize() {
                    prop_assert!(real.starts_with(&root), "{path} leads to {}", real.display());
                }
            }
        }
    }
}

async fn job(data: &Path, working_directory: &str) -> JobDir {
    let mut spec = spec(Stage::Plan);
    spec.workspace.working_directory = working_directory.to_owned();
    JobDir::create(data, &spec, Placement::of(ExecutorKind::Docker)).await.unwrap()
}

#[tokio::test]
async fn a_configuration_brings_no_state_no_plan_and_no_settings_of_the_agent() {
    let data = tempfile::tempdir().unwrap();
    let dir = job(data.path(), "w").await;
    let outside = data.path().join("outside");
    fs::write(&outside, "mine").unwrap();
    let foreign =
        ["terraform.tfstate", "terraform.tfstate.d/x/y", ".terraform/environment", "tfplan", "errored.tfstate"];
    let files: Vec<(String, &str)> = foreign.iter().map(|name| (format!("w/{name}"), "x")).collect();
    let mut files: Vec<(&str, &str)> = files.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    files.push(("w/main.tf", ""));
    dir.unpack_configuration(slug(&files)).await.unwrap();
    for name in foreign {
        assert!(!dir.path().join("config/w").join(name).exists(), "{name}");
    }
    dir.put_state(Some(Bytes::from_static(b"{}"))).await.unwrap();
    assert_eq!(dir.state().await.unwrap().unwrap().as_ref(), b"{}");
    dir.put_state(None).await.unwrap();
    assert_eq!(dir.state().await.unwrap(), None);
    let error = dir.unpack_plan(slug(&[("tfplan", ""), ("main.tf", "")])).await.unwrap_err();
    assert!(error.to_string().contains("`main.tf` does not belong into it"), "{error}");
}

#[tokio::test]
async fn a_working_directory_that_is_not_there_or_leads_away_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let dir = job(data.path(), "gone").await;
    let error = dir.unpack_configuration(slug(&[("main.tf", "")])).await.unwrap_err();
    assert_eq!(error.reason(), reason::BAD_CONFIGURATION);
    assert!(error.to_string().contains("no working directory `gone`"), "{error}");
    let dir = job(data.path(), "link").await;
    let linked = archive(&[(FILE, "real/main.tf", ""), (LINK, "link", "real")]);
    assert!(dir.unpack_configuration(Archive::Bytes(linked.into())).await.is_err());
    let mut spec = spec(Stage::Plan);
    spec.workspace.working_directory = "../up".to_owned();
    let placement = Placement::of(ExecutorKind::Docker);
    assert_eq!(JobDir::create(data.path(), &spec, placement).await.unwrap_err().reason(), reason::BAD_CONFIGURATION);
}

/// While a stage runs it may put anything in the place of what the agent will read.
#[tokio::test]
async fn what_a_stage_leaves_behind_is_never_followed_out_of_its_directory() {
    let data = tempfile::tempdir().unwrap();
    let secret = data.path().join("secret");
    fs::write(&secret, "{}").unwrap();
    let dir = job(data.path(), "w").await;
    dir.unpack_configuration(slug(&[("w/main.tf", "")])).await.unwrap();
    let root = dir.path();
    for name in ["result", "log", "artifacts/plan.json", "config/w/terraform.tfstate", "config/w/tfplan"] {
        symlink(&secret, root.join(name)).unwrap();
    }
    assert!(dir.result().await.is_err());
    assert!(dir.open_log(0).is_err());
    assert!(dir.append_log("x").await.is_err());
    assert!(dir.open_plan_json().is_err());
    assert!(dir.state().await.is_err());
    assert!(dir.pack_plan().await.is_err());
    assert_eq!(fs::read_to_string(&secret).unwrap(), "{}");
    // A link on the way, and a pipe that nobody writes to.
    fs::remove_dir_all(root.join("config")).unwrap();
    fs::create_dir(data.path().join("w")).unwrap();
    fs::write(data.path().join("w/terraform.tfstate"), "{}").unwrap();
    symlink(data.path(), root.join("config")).unwrap();
    assert!(dir.state().await.is_err());
    fs::remove_file(root.join("log")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(root.join("log")).status().unwrap().success());
    assert!(dir.open_log(0).is_err());
    dir.remove().await.unwrap();
    assert!(secret.exists() && data.path().join("w/terraform.tfstate").exists());
}

#[tokio::test]
async fn half_made_and_half_removed_directories_are_cleared_away() {
    let data = tempfile::tempdir().unwrap();
    let dir = job(data.path(), "").await;
    assert!(!dir.is_set_up() && !dir.has_begun());
    fs::create_dir_all(data.path().join("jobs/job-half/config")).unwrap();
    fs::write(data.path().join("jobs/job-bad.json"), "{").unwrap();
    let found = JobDir::scan(data.path()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1.path(), dir.path());
    assert!(!data.path().join("jobs/job-half").exists());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(dir.path()), 0o700);
    assert_eq!(mode(&dir.path().with_added_extension("json")), 0o600);
    assert_eq!(mode(&data.path().join("jobs")), 0o700);
}
