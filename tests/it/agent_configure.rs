//! `terrapool agent configure` writes what the service is started with.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use tempfile::TempDir;

use crate::support::host::{Told, agent};

const URL: &str = "https://terrapool.example.com";
const TOKEN: &str = "tpp_0123456789012345678901234567890123456789abc";
const OTHER: &str = "tpp_abcdefghijabcdefghijabcdefghijabcdefghij012";

fn place() -> (TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("terrapool");
    (place, dir)
}

async fn configure(dir: &Path, arguments: &[&str], input: &str) -> Told {
    agent("configure", dir, arguments, &[], input).await
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn settings_and_token_lie_in_files_of_their_own_that_only_their_owner_reads() {
    let (_place, dir) = place();
    let told =
        configure(&dir, &["--url", URL, "--token", "-", "--label", "zone=a", "--label", "rack=x y"], TOKEN).await;
    let told = told.expect(0);
    assert_eq!((mode(&dir), mode(&dir.join("agent.env")), mode(&dir.join("agent.token"))), (0o700, 0o600, 0o600));
    let token_file = dir.join("agent.token");
    let wanted = format!(
        "TERRAPOOL_URL={URL}\nTERRAPOOL_AGENT_LABELS=\"zone=a,rack=x y\"\nTERRAPOOL_POOL_TOKEN_FILE={}\n",
        token_file.display()
    );
    assert_eq!(read(&dir, "agent.env"), wanted);
    assert_eq!(read(&dir, "agent.token"), format!("{TOKEN}\n"));
    for text in [&told.stdout, &told.stderr] {
        assert!(!text.contains(TOKEN), "{text}");
    }
    assert!(told.stdout.contains("terrapool agent check"), "{}", told.stdout);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
}

#[tokio::test]
async fn what_is_not_given_stays_as_it_is() {
    let (_place, dir) = place();
    configure(&dir, &["--url", URL, "--token", "-", "--concurrency", "3"], TOKEN).await.expect(0);
    let text = format!("# by hand\nHTTPS_PROXY=http://proxy:3128\n{}", read(&dir, "agent.env"));
    fs::write(dir.join("agent.env"), &text).unwrap();
    let told = configure(&dir, &["--user", "root"], "").await.expect(0);
    assert_eq!(read(&dir, "agent.env"), format!("{text}TERRAPOOL_AGENT_USER=root\n"));
    assert_eq!(read(&dir, "agent.token"), format!("{TOKEN}\n"));
    assert!(told.stdout.contains("as root of their containers"), "{}", told.stdout);
    let told = configure(&dir, &["--user", "root", "--json"], "").await.expect(0).json();
    assert_eq!((&told["changed"], &told["token_changed"]), (&serde_json::json!([]), &serde_json::json!(false)));
}

#[tokio::test]
async fn the_token_may_come_in_four_ways_and_only_as_an_argument_is_it_told_to_be_seen() {
    let (place, dir) = place();
    let file = place.path().join("token");
    fs::write(&file, format!("{OTHER}\n")).unwrap();
    let file = file.to_str().unwrap();
    let of_variable = [("TERRAPOOL_POOL_TOKEN", TOKEN)];
    for (arguments, environment, input, wanted) in [
        (vec!["--url", URL], of_variable.as_slice(), "", TOKEN),
        (vec!["--token-file", file], &of_variable, "", OTHER),
        (vec!["--token", "-"], &of_variable, TOKEN, TOKEN),
        (vec!["--token", OTHER], &of_variable, "", OTHER),
    ] {
        let told = agent("configure", &dir, &arguments, environment, input).await.expect(0);
        assert_eq!(read(&dir, "agent.token"), format!("{wanted}\n"), "{arguments:?}");
        assert_eq!(told.stdout.contains("history"), arguments[1] == OTHER, "{arguments:?}: {}", told.stdout);
    }
}

#[tokio::test]
async fn wrong_settings_are_told_with_their_mend_and_change_nothing() {
    let (_place, dir) = place();
    for (arguments, input, code, words) in [
        (vec!["--token", "-"], TOKEN, 1, "--url"),
        (vec!["--url", URL], "", 1, "TERRAPOOL_POOL_TOKEN"),
        (vec!["--url", "http://terrapool.example.com", "--token", "-"], TOKEN, 1, "--allow-plain-http"),
        (vec!["--url", URL, "--token", "-"], "tpu_secret", 1, "a user's token"),
        (vec!["--url", URL, "--token", "-", "--ca-file", "/nowhere/ca.pem"], TOKEN, 1, "/nowhere/ca.pem"),
        (vec!["--url", URL, "--token", "-", "--user", "somebody"], TOKEN, 2, "nonroot"),
        (vec!["--url", URL, "--token", "-", "--drain-timeout", "soon"], TOKEN, 2, "15m"),
    ] {
        let told = configure(&dir, &arguments, input).await.expect(code);
        assert!(told.stderr.contains(words), "{arguments:?}: {}", told.stderr);
        assert!(!told.stderr.contains("tpu_secret"), "{}", told.stderr);
        assert!(!dir.exists(), "{arguments:?}");
    }
}
