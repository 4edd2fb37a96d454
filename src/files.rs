//! Files that hold secrets or must survive a crash.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Writes a file that only this user may read; its name appears with its whole content, durably, or not at all.
///
/// # Errors
/// When the file cannot be written; what stood there before stands then.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_added_extension("tmp");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    if let Err(error) = file.write_all(content).and_then(|()| file.sync_all()) {
        // On a full disk the draft would stay for nothing.
        drop(fs::remove_file(&draft));
        return Err(error);
    }
    fs::rename(&draft, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_private_and_replaced_whole_even_after_a_crash() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        // What a crash between draft and rename leaves.
        fs::write(dir.path().join("secret.tmp"), "half").unwrap();
        for content in ["one", "two"] {
            write_private(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
