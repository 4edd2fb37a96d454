//! Numbers of bytes on the command line.

/// Less than this Docker refuses as memory.
const LEAST_OF_RUN: u64 = 6 << 20;

/// Less than this holds neither an engine nor a provider.
const LEAST_OF_CACHE: u64 = 1 << 20;

/// What a run may take.
pub(super) fn of_run(text: &str) -> Result<u64, String> {
    bytes(text)
        .filter(|bytes| *bytes >= LEAST_OF_RUN)
        .ok_or_else(|| format!("`{text}` is not a size of at least 6MiB, as 512MiB or 4GiB"))
}

/// What a cache may take; nothing is a size too.
pub(super) fn of_cache(text: &str) -> Result<u64, String> {
    bytes(text)
        .filter(|bytes| *bytes == 0 || *bytes >= LEAST_OF_CACHE)
        .ok_or_else(|| format!("`{text}` is not a size of at least 1MiB, as 10GiB, nor 0"))
}

/// `512MiB`, `4G`, `1073741824`: K, M, G and T count in 1024, whatever stands behind them. Less than an exbibyte.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes < 1 << 60).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_count_in_1024() {
        for text in ["10GiB", "10gb", "10G", "10240MiB", "10485760K", "10737418240", "10737418240b"] {
            assert_eq!(of_cache(text), Ok(10 << 30), "{text}");
            assert_eq!(of_run(text), Ok(10 << 30), "{text}");
        }
        assert_eq!(of_cache("1TiB"), Ok(1 << 40));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        let texts =
            ["", "GiB", "10 GiB", "-1GiB", "1.5GiB", "4XB", "4ib", "4bb", "10", "99999999TiB", "99999999999999999999"];
        for text in texts {
            assert!(of_cache(text).is_err() && of_run(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_caches_may_take_next_to_nothing() {
        for text in ["0", "0GiB", "1MiB"] {
            assert!(of_cache(text).is_ok() && of_run(text).is_err(), "{text}");
        }
    }
}
