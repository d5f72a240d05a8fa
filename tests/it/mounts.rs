//! Tests with mounts of their own, which nobody else sees and which end with them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

/// Tells a test that it runs where it may mount.
const OWN_MOUNTS: &str = "STREAMING_TEST_OWN_MOUNTS";

/// Whether this process has mounts of its own. If not, the test runs in one that has, and there is nothing left to do for
/// its caller; where that is not allowed, it says so.
pub(crate) fn has_own_mounts(test: &str) -> anyhow::Result<bool> {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return Ok(true);
    }
    let allowed = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/tmp"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        // Not captured, as what `println!` prints is.
        writeln!(io::stderr(), "SKIPPED {test}: no file system can be mounted here (`unshare -rm`)")?;
        return Ok(false);
    }
    let mut command = Command::new("unshare");
    command.arg("-rm").arg(std::env::current_exe()?).args([test, "--exact", "--nocapture"]).env(OWN_MOUNTS, "1");
    let output = command.output()?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}{complained}");
    ensure!(output.status.success() && said.contains(" 1 passed;"), "{test} failed in its own mounts");
    Ok(false)
}

/// A file system in memory, of this size. Everything is gone with it.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    pub(crate) fn mount(path: PathBuf, bytes: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(&path)?;
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(&path).status()?;
        ensure!(status.success(), "mount {}: {status}", path.display());
        Ok(Self { path })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes what room there is, to the last page.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = File::create(self.ballast())?;
        for step in [1 << 20, 4 << 10] {
            let zeros = vec![0; step];
            loop {
                match ballast.write_all(&zeros) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    pub(crate) fn make_room(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    /// The data files of all volumes on it.
    pub(crate) fn data_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        collect(&self.path, &mut files)?;
        files.sort_unstable();
        Ok(files)
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "vol") {
            files.push(path);
        }
    }
    Ok(())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Who still has files open there keeps them; the directory can be removed.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
