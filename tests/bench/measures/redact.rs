//! How fast secrets are hidden in a log.

use std::{hint::black_box, time::Instant};

use aho_corasick::{AhoCorasick, MatchKind};
use terrapool::agent::redact::{MARK, Redactor, Secrets, forms};

use crate::support::report::{self, Samples};

const ROUNDS: usize = 7;
const SECRETS: usize = 100;

/// As the agent reads a log.
const PIECE: usize = 16 * 1024;

/// Bytes of the log.
const LENGTH: usize = 64 * 1024 * 1024;

pub fn measure() -> anyhow::Result<()> {
    report::heading(
        "redact",
        "100 secrets in all their forms, looked for in 64 MiB of a log that shows one in every 16 KiB, on one core (the floor: an \
         automaton of the crate aho-corasick for the same forms, which sees each piece by itself)",
    );
    let values: Vec<String> = (0..SECRETS).map(value).collect();
    let log = log(&values);
    let secrets = Secrets::new(values.iter().map(String::as_str));
    let forms: Vec<Vec<u8>> = values.iter().flat_map(|value| forms::of(value)).collect();
    let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&forms)?;
    let marks = vec![MARK; forms.len()];
    let [mut ours, mut peer, mut idle] = [(); 3].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        peer.push(rate(&log, |piece, output| output.extend(automaton.replace_all_bytes(piece, &marks))));
        let mut redactor = Redactor::new(secrets.clone());
        ours.push(rate(&log, |piece, output| redactor.push(piece, output)));
        let mut without = Redactor::new(Secrets::default());
        idle.push(rate(&log, |piece, output| without.push(piece, output)));
    }
    report::row("forms", &format!("{} of {SECRETS} secrets, {} bytes", forms.len(), forms.concat().len()));
    report::row("memory of the automaton", &format!("{:.1} MB", automaton.memory_usage() as f64 / 1e6));
    report::samples("floor: aho-corasick", &peer, "MB/s");
    report::beside("redacted (target ≥ 300 MB/s)", &ours, "MB/s", &peer);
    report::samples("a job without secrets", &idle, "MB/s");
    Ok(())
}

/// Megabytes in a second.
fn rate(log: &[u8], mut take: impl FnMut(&[u8], &mut Vec<u8>)) -> f64 {
    let start = Instant::now();
    let mut output = Vec::with_capacity(2 * PIECE);
    for piece in log.chunks(PIECE) {
        take(piece, &mut output);
        black_box(&output);
        output.clear();
    }
    log.len() as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// Of 20 to 60 characters, some of which are written in another way elsewhere.
fn value(number: usize) -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=&\" ";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as usize
    };
    let length = 20 + next() % 41;
    (0..length).map(|_| char::from(LETTERS[next() % LETTERS.len()])).collect()
}

fn log(values: &[String]) -> Vec<u8> {
    let mut log = Vec::with_capacity(LENGTH + PIECE);
    let mut number = 0;
    while log.len() < LENGTH {
        let line = format!(
            "module.network.aws_subnet.private[{number}]: Creation complete after {}s [id=subnet-0{:016x}]\n",
            number % 60,
            number * 0x9e37_79b9,
        );
        log.extend_from_slice(line.as_bytes());
        if number % (PIECE / 90) == 0 {
            log.extend_from_slice(format!("password = \"{}\"\n", values[number % values.len()]).as_bytes());
        }
        number += 1;
    }
    log
}
