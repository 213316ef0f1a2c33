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
    file: File,
    stamp: Option<FileStamp>,
}

/// What tells a file's contents from other contents without reading them, as long as nobody sets clocks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// On which file system.
    pub device: u64,
    /// Which file there.
    pub inode: u64,
    /// How long, in bytes.
    pub length: u64,
    /// When its contents changed last, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// When its contents, name or rights changed last, in nanoseconds since 1970: no program can set it.
    pub changed_ns: i128,
}

impl FileStamp {
    #[cfg(unix)]
    fn of(metadata: &std::fs::Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    #[cfg(not(unix))]
    fn of(_: &std::fs::Metadata) -> Option<Self> {
        None
    }
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
        let stamp = FileStamp::of(&metadata);
        // An empty mapping is an error on every system; an empty file is not.
        if metadata.len() == 0 {
            return Ok(Self { map: None, file, stamp });
        }
        // SAFETY: read only; for writers beside us see the type's description.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map: Some(map), file, stamp })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Which contents these are, where the system tells.
    pub fn stamp(&self) -> Option<FileStamp> {
        self.stamp
    }

    /// Whether nobody has written to the file since it was mapped, as far as the system tells. That it was replaced by
    /// another of its name, or removed, is no change: the mapping is of the old one.
    pub fn is_as_it_was(&self) -> bool {
        let now = self.file.metadata().ok().and_then(|metadata| FileStamp::of(&metadata));
        match (self.stamp, now) {
            (Some(then), Some(now)) => (then.length, then.modified_ns) == (now.length, now.modified_ns),
            _ => true,
        }
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
            assert_eq!(mapped.stamp(), MappedFile::open(&path).unwrap().stamp());
            std::fs::write(folder.join("next"), content).unwrap();
            std::fs::rename(folder.join("next"), &path).unwrap();
            #[cfg(unix)]
            assert_ne!(
                mapped.stamp(),
                MappedFile::open(&path).unwrap().stamp(),
                "another file of the same length"
            );
        }
        #[cfg(unix)]
        {
            let path = folder.join("file-7");
            let mapped = MappedFile::open(&path).unwrap();
            std::fs::rename(&path, folder.join("elsewhere")).unwrap();
            assert!(mapped.is_as_it_was(), "replaced, not rewritten");
            let writer = File::options().write(true).open(folder.join("elsewhere")).unwrap();
            writer.set_modified(std::time::UNIX_EPOCH).unwrap();
            assert!(!mapped.is_as_it_was());
        }
        assert!(MappedFile::open(&folder).is_err());
        assert!(MappedFile::open(&folder.join("absent")).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
