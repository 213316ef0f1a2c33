//! Slices that several workers write, each its own part.

use std::marker::PhantomData;

/// A mutable slice whose parts are written by several threads. Who writes what is the user's affair, argued where
/// it is used.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]`; that parts do not overlap is promised at each use.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `len` elements from `at`.
    ///
    /// # Safety
    /// No other part that is alive overlaps it.
    #[expect(clippy::mut_from_ref, reason = "the point of the type; see its safety section")]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part {at}+{len} of a slice of {}", self.len);
        // SAFETY: inside the slice, and no other part overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
