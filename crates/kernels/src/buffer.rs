//! Memory that loops like: zeroed, at a cache line's alignment, in huge pages where it is large.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use memmap2::MmapMut;

/// A cache line, and one AVX-512 register.
const ALIGNMENT: usize = 64;

/// From here on memory comes from the kernel directly: untouched pages cost nothing, and freeing gives them back.
const MAPPED_FROM_BYTES: usize = 1 << 20;

mod sealed {
    /// Types for which all-zero bytes are a value.
    pub trait Zeroable: Copy + Send + Sync + 'static {}
    impl Zeroable for f32 {}
    impl Zeroable for u16 {}
    impl Zeroable for u8 {}
}

/// A slice of `f32`, `u16` (halves and bf16 as bits) or `u8` that owns its memory. It does not grow.
pub struct Buffer<T: sealed::Zeroable> {
    start: NonNull<T>,
    len: usize,
    memory: Memory,
}

enum Memory {
    None,
    Heap(Layout),
    Mapped(#[expect(dead_code, reason = "held for its destructor")] MmapMut),
}

// SAFETY: it owns its memory, whose elements may be sent and shared.
unsafe impl<T: sealed::Zeroable> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: sealed::Zeroable> Sync for Buffer<T> {}

impl<T: sealed::Zeroable> Buffer<T> {
    /// `len` zeroes.
    ///
    /// # Errors
    /// The operating system has no such amount of memory.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize / 2);
        let Some(bytes) = bytes else {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("{len} elements do not fit memory"),
            ));
        };
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), len, memory: Memory::None });
        }
        if bytes >= MAPPED_FROM_BYTES {
            return Self::mapped(len, bytes);
        }
        let layout =
            Layout::from_size_align(bytes, ALIGNMENT).expect("a power of two and less than a megabyte");
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(memory.cast::<T>()) else { handle_alloc_error(layout) };
        Ok(Self { start, len, memory: Memory::Heap(layout) })
    }

    fn mapped(len: usize, bytes: usize) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes)?;
        // With 4 KiB pages a stream of weights spends a third of its time on missing translations. Where there
        // are no huge pages everything works as well, only slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = NonNull::new(map.as_mut_ptr().cast::<T>()).expect("a mapping is nowhere null");
        Ok(Self { start, len, memory: Memory::Mapped(map) })
    }
}

impl<T: sealed::Zeroable> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Memory::Heap(layout) = self.memory {
            // SAFETY: allocated in `zeroed` with this layout, and freed here alone.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

impl<T: sealed::Zeroable> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `start` is valid for `len` initialised elements for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: sealed::Zeroable> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: sealed::Zeroable> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} x {})", self.len, std::any::type_name::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_small_and_large_are_zeroed_aligned_and_writable() {
        for len in [0, 1, 100, MAPPED_FROM_BYTES] {
            let mut buffer = Buffer::<f32>::zeroed(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&x| x == 0.0));
            buffer.fill(1.5);
            assert!(buffer.iter().all(|&x| x == 1.5));
            if len > 0 {
                assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            }
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert_eq!(Buffer::<f32>::zeroed(usize::MAX / 2).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert!(Buffer::<u16>::zeroed(1 << 60).is_err());
    }
}
