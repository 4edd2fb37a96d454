//! Which measures are wanted.

/// Those whose names contain one of the words of the command line; all without words.
pub fn chosen<M: Copy>(measures: &[(&'static str, M)]) -> anyhow::Result<Vec<M>> {
    // cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let chosen: Vec<M> = measures.iter().filter(|(name, _)| wanted(name)).map(|(_, measure)| *measure).collect();
    let names: Vec<&str> = measures.iter().map(|(name, _)| *name).collect();
    anyhow::ensure!(!chosen.is_empty(), "no measure has such a name; there are {}", names.join(", "));
    Ok(chosen)
}
