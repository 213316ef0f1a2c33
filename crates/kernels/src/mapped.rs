//! Files read through the page cache, without a copy.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A whole file, mapped for reading.
///
/// Whoever shortens the file while it is mapped makes reads beyond its new end kill the process (the operating
/// system's rule for mappings): model files are replaced, not rewritten, and mappings are kept only while loading.
#[derive(Debug)]
pub struct MappedFile {
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// It cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // An empty mapping is an error on every system; an empty file is not.
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: read only; for writers beside us see the type's description.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Lets go of what has been read: it counts as memory of this process no more, stays in the page cache, and comes back
    /// from there where it is read again.
    pub fn let_go(&self) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.map {
            // SAFETY: the mapping is of a file and is only read, so what a page held comes back from the file.
            let advised = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // Only a hint: where it fails, memory is taken until the mapping goes, and nothing else.
            let _ = advised;
        }
    }

    /// Tells the operating system that the whole file will be read soon, so that it starts to.
    pub fn will_be_read(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // Only a hint: where it fails, reading is slower and nothing else.
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_maps_to_its_bytes_and_an_empty_one_to_none() {
        let folder = std::env::temp_dir().join(format!("phalanx-mapped-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for content in [&b"weights"[..], b""] {
            let path = folder.join(format!("file-{}", content.len()));
            std::fs::write(&path, content).unwrap();
            let mapped = MappedFile::open(&path).unwrap();
            mapped.will_be_read();
            assert_eq!(mapped.bytes(), content);
            mapped.let_go();
            assert_eq!(mapped.bytes(), content);
        }
        assert!(MappedFile::open(&folder).is_err());
        assert!(MappedFile::open(&folder.join("absent")).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
