//! Amounts of resources as Kubernetes writes them: `512Mi`, `500m`, `1.5`. Pure.

/// Thousandths of the unit; rounded up, since a limit of nearly nothing is not nothing. `None`: not an amount.
pub fn thousandths(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => f64::from(1 << 10),
        "Mi" => f64::from(1 << 20),
        "Gi" => f64::from(1 << 30),
        "Ti" => f64::powi(2.0, 40),
        "Pi" => f64::powi(2.0, 50),
        exponent => f64::powi(10.0, exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let value = (number.parse::<f64>().ok()? * factor * 1000.0).ceil();
    // Within what an i64 holds, and what an f64 holds exactly enough.
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (0.0..9e18).contains(&value).then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::thousandths;

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        let table = [
            ("500m", 500),
            ("2", 2000),
            ("1.5", 1500),
            ("512Mi", 536_870_912_000),
            ("1G", 1_000_000_000_000),
            ("1e3", 1_000_000),
            ("100u", 1),
        ];
        for (text, wanted) in table {
            assert_eq!(thousandths(text), Some(wanted), "{text}");
        }
        for text in ["", "x", "1X", "-1", "1..2", "1e", "99999999999Pi"] {
            assert_eq!(thousandths(text), None, "{text}");
        }
    }
}
