//! Whose data a directory holds: a file `instance` names the instance of Woodpecker that its volumes belong to.

use std::{io, path::Path};

use woodpecker_base::disk::{Disk, OpenMode};

use super::file::unreadable;
use crate::backend::StoreError;

/// Makes the directory the instance's, or checks that it is. Blocks on file I/O.
pub(super) fn claim(root: &Path, disk: &dyn Disk, process: u128, instance: &str) -> Result<(), StoreError> {
    let failed = |error| unreadable(root, &error);
    let foreign = |detail| {
        let what = format!("{}, as the data of instance {instance}", root.display());
        Err(StoreError::Foreign { what, detail })
    };
    let read = || -> io::Result<String> {
        let file = disk.open(&root.join("instance"), OpenMode::Read)?;
        Ok(String::from_utf8_lossy(&file.read(256, 0)?).trim_end().to_owned())
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !disk.list(&root.join("volumes")).map_err(failed)?.is_empty() {
                return foreign("it has volumes and no file `instance` to say whose they are".to_owned());
            }
            // Under a name of its own first: another process may be doing the same.
            let draft = root.join(format!("instance.{process:032x}"));
            // Of an attempt of this process that failed, for want of room say.
            match disk.remove_file(&draft) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let file = disk.open(&draft, OpenMode::CreateNew).map_err(failed)?;
            file.write_all_at(format!("{instance}\n").as_bytes(), 0).map_err(failed)?;
            file.sync_data().map_err(failed)?;
            disk.rename(&draft, &root.join("instance")).map_err(failed)?;
            disk.sync_dir(root).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
        Ok(_) => {}
    }
    let said = read().map_err(failed)?;
    if said == instance { Ok(()) } else { foreign(format!("its volumes belong to instance {said}")) }
}

#[cfg(test)]
mod tests {
    use woodpecker_base::disk::RealDisk;

    use super::*;

    #[test]
    fn an_attempt_that_failed_in_the_middle_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("volumes")).unwrap();
        std::fs::write(dir.path().join(format!("instance.{:032x}", 7)), "ha").unwrap();
        claim(dir.path(), &RealDisk, 7, "half an instance").unwrap();
        claim(dir.path(), &RealDisk, 8, "half an instance").unwrap();
        assert_eq!(claim(dir.path(), &RealDisk, 8, "another").unwrap_err().code(), "STORE_FOREIGN");
    }
}
