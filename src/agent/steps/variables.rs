//! The values of variables, as a file for the engine.

use std::collections::BTreeMap;

use super::{Error, Result};
use crate::api::job::{Category, JobSpec};

/// The content of [`super::VARIABLES`]; `None`: there are none. A run's variables win over the workspace's.
///
/// # Errors
/// [`Error::VariableName`]
pub fn variables(spec: &JobSpec) -> Result<Option<String>> {
    let mut values: BTreeMap<&str, String> = BTreeMap::new();
    for variable in spec.variables.iter().filter(|variable| variable.category == Category::Terraform) {
        let value = if variable.hcl { variable.value.clone() } else { quote(&variable.value) };
        values.insert(&variable.key, value);
    }
    for variable in &spec.run.variables {
        values.insert(&variable.key, variable.value.clone());
    }
    let mut text = String::new();
    for (key, value) in values {
        if !is_identifier(key) {
            return Err(Error::VariableName { key: key.to_owned() });
        }
        text.push_str(&format!("{key} = {value}\n"));
    }
    Ok((!text.is_empty()).then_some(text))
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

/// A string as an HCL literal: no template in it is expanded.
fn quote(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '$' | '%' if chars.peek() == Some(&'{') => text.extend([c, c]),
            c if c.is_control() => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{spec, variable},
        *,
    };
    use crate::api::job::{RunVariable, Stage};

    #[test]
    fn variables_become_hcl_and_the_runs_own_win() {
        let mut spec = spec(Stage::Plan);
        assert_eq!(variables(&spec).unwrap(), None);
        spec.variables = vec![
            variable("plain", "a \"b\" \\ ${c} %{d} $$ \n\tü", Category::Terraform, false),
            variable("list", "[1, 2]", Category::Terraform, true),
            variable("both", "workspace", Category::Terraform, false),
            variable("twice", "one", Category::Terraform, false),
            variable("twice", "two", Category::Terraform, false),
            variable("NOT_HERE", "x", Category::Env, false),
        ];
        spec.run.variables = vec![RunVariable { key: "both".into(), value: "{ a = 1 }".into() }];
        let wanted =
            "both = { a = 1 }\nlist = [1, 2]\nplain = \"a \\\"b\\\" \\\\ $${c} %%{d} $$ \\n\\tü\"\ntwice = \"two\"\n";
        assert_eq!(variables(&spec).unwrap().as_deref(), Some(wanted));
        for key in ["", "a b", "1a", "a.b", "a = 1\nb"] {
            spec.run.variables = vec![RunVariable { key: key.into(), value: "1".into() }];
            assert!(matches!(variables(&spec), Err(Error::VariableName { .. })), "{key:?}");
        }
    }
}
