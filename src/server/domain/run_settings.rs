//! What a pool's administrator may set for its runs. Pure.

pub use crate::api::image_name::is_image;
use crate::{
    api::{iacp::RunSettings, image_name::fits},
    server::error::{Error, Result},
};

/// Docker refuses less.
const MIN_MEMORY_BYTES: i64 = 6 << 20;
const MIN_CPU_MILLIS: i64 = 10;
/// A stage that takes longer than a week is forgotten, not slow.
const MAX_TIMEOUT_SECONDS: u64 = 7 * 24 * 3600;

/// Checks every member.
///
/// # Errors
/// [`Error::Attribute`] at the first member that cannot be used.
pub fn check(settings: &RunSettings) -> Result<()> {
    // destructured in full: a new member must be thought about here
    let RunSettings {
        image,
        allowed_images,
        run_as_root: _,
        env,
        memory_bytes,
        cpu_millis,
        plan_timeout_seconds,
        apply_timeout_seconds,
    } = settings;
    let wrong = |member: String, detail: String| Err(Error::attribute(format!("run-settings/{member}"), detail));
    if let Some(image) = image.as_ref().filter(|image| !is_image(image)) {
        return wrong("image".to_owned(), format!("`{image}` is not an image reference, as `registry/name:tag`."));
    }
    for (index, pattern) in allowed_images.iter().enumerate() {
        if !is_pattern(pattern) {
            let detail = format!("`{pattern}` is neither an image reference nor the start of one with `*` at its end.");
            return wrong(format!("allowed-images/{index}"), detail);
        }
    }
    for (name, value) in env {
        if !is_variable(name) || value.contains('\0') {
            return wrong("env".to_owned(), format!("`{name}` cannot be the name of an environment variable."));
        }
    }
    if memory_bytes.is_some_and(|bytes| bytes < MIN_MEMORY_BYTES) {
        return wrong("memory-bytes".to_owned(), format!("The least is {MIN_MEMORY_BYTES} bytes."));
    }
    if cpu_millis.is_some_and(|millis| millis < MIN_CPU_MILLIS) {
        return wrong("cpu-millis".to_owned(), format!("The least is {MIN_CPU_MILLIS} thousandths of a CPU."));
    }
    let timeouts = [("plan-timeout-seconds", plan_timeout_seconds), ("apply-timeout-seconds", apply_timeout_seconds)];
    for (member, timeout) in timeouts {
        if timeout.is_some_and(|seconds| !(1..=MAX_TIMEOUT_SECONDS).contains(&seconds)) {
            return wrong(member.to_owned(), format!("Must lie between 1 and {MAX_TIMEOUT_SECONDS} seconds."));
        }
    }
    Ok(())
}

/// Whether a workspace may ask for `image`: it is the pool's own, or in its list.
#[must_use]
pub fn allows(settings: &RunSettings, image: &str) -> bool {
    settings.image.as_deref() == Some(image) || settings.allowed_images.iter().any(|pattern| fits(pattern, image))
}

/// The image that a job needs whose workspace asks for `wanted`; `None`: the agent's default one. What is not allowed
/// counts as not asked for: whichever agent gets the job, its run ends at once with that reason.
#[must_use]
pub fn image<'a>(settings: &'a RunSettings, wanted: Option<&'a str>) -> Option<&'a str> {
    wanted.filter(|wanted| allows(settings, wanted)).or(settings.image.as_deref())
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The start of a reference, then `*`; or a whole one.
fn is_pattern(pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => start.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b)),
        None => is_image(pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_refused_with_the_member_that_is_wrong() {
        let cases = [
            (RunSettings { image: Some("A B".to_owned()), ..RunSettings::default() }, "run-settings/image"),
            (
                RunSettings { allowed_images: vec!["a*".to_owned(), "*x".to_owned()], ..RunSettings::default() },
                "run-settings/allowed-images/1",
            ),
            (
                RunSettings { env: [("1A".to_owned(), String::new())].into(), ..RunSettings::default() },
                "run-settings/env",
            ),
            (RunSettings { memory_bytes: Some(0), ..RunSettings::default() }, "run-settings/memory-bytes"),
            (RunSettings { cpu_millis: Some(-1), ..RunSettings::default() }, "run-settings/cpu-millis"),
            (
                RunSettings { plan_timeout_seconds: Some(0), ..RunSettings::default() },
                "run-settings/plan-timeout-seconds",
            ),
            (
                RunSettings { apply_timeout_seconds: Some(u64::MAX), ..RunSettings::default() },
                "run-settings/apply-timeout-seconds",
            ),
        ];
        for (settings, member) in cases {
            let error = check(&settings).unwrap_err();
            assert!(matches!(&error, Error::Attribute { name, .. } if name == member), "{error:?}");
        }
        check(&RunSettings::default()).unwrap();
    }
}
