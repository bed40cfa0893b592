//! The allocator of programs that are linked with musl.
//!
//! A plugin lives for two milliseconds, in which it allocates a thousand blocks and frees most of
//! them. Its first thread takes them one after the other from an arena; what is freed there is used
//! again only if it is the last block. Other threads, daemons, long blocks and blocks that have no
//! place in the arena get theirs from dlmalloc, which has a lock.
//!
//! musl's own allocator maps each group of a few blocks by itself: fifteen mmap(2) and munmap(2) in
//! an ADD of tuning, each of which flushes the processor's address cache.
//!
//! Cost: 100 lines. Gain: dlmalloc in the place of musl's allocator 0.05 ms in an ADD of portmap or
//! tuning, a tenth; the arena 0.1 ms of processor time in an ADD of bridge, of 1.9, and a tenth of a
//! DEL's.

#![allow(unsafe_code, reason = "the interface of an allocator")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, Ordering};

use dlmalloc::GlobalDlmalloc;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

struct Allocator;

/// Bytes of the arena. An ADD of bridge uses 60,000, and a buffer for answers of the kernel, of which it
/// uses a page; the kernel provides the pages that are used.
const SIZE: usize = 512 * 1024;

/// Bytes of the longest block in the arena: the buffer for answers of the kernel.
const LONGEST: usize = 256 * 1024;

/// Bytes of the longest block in the arena that is filled with zeros.
const LONGEST_OF_ZEROS: usize = 8 * 1024;

/// The alignment of every block, at least: that of malloc(3). The library that unwinds a panic relies on
/// it, whatever the layout of the block says.
const ALIGN: usize = 16;

#[repr(align(4096))]
struct Arena(UnsafeCell<[u8; SIZE]>);

// SAFETY: each block has one owner, and only one thread hands out blocks (`own_arena`).
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; SIZE]));

thread_local! {
    /// How many bytes of the arena are in use; `NOT_OURS` in threads that do not own it.
    static USED: Cell<usize> = const { Cell::new(NOT_OURS) };
}

/// More than the arena has.
const NOT_OURS: usize = SIZE + 1;

/// Gives the arena to the calling thread, unless another one has it.
pub fn own_arena() {
    static OWNED: AtomicBool = AtomicBool::new(false);
    if !OWNED.swap(true, Ordering::Relaxed) {
        USED.set(0);
    }
}

/// A new block of the arena, if it has place for one.
fn take(layout: Layout) -> Option<*mut u8> {
    let begin = USED.get().next_multiple_of(layout.align().max(ALIGN));
    let end = begin + layout.size();
    if layout.size() > LONGEST || end > SIZE {
        return None;
    }
    USED.set(end);
    Some(ARENA.0.get().cast::<u8>().wrapping_add(begin))
}

/// Where in the arena a block begins; `None` for a block of dlmalloc.
fn begin_of(block: *mut u8) -> Option<usize> {
    let begin = block.addr().wrapping_sub(ARENA.0.get().addr());
    (begin < SIZE).then_some(begin)
}

/// Changes the length of a block of the arena, if it is the last one and has place.
fn resize_last(begin: usize, layout: Layout, size: usize) -> bool {
    let end = begin + size;
    let done = USED.get() == begin + layout.size() && end <= SIZE;
    if done {
        USED.set(end);
    }
    done
}

// SAFETY: a block of the arena lies between two values of `USED`, which only its thread changes, and
// goes back only from its end. All other blocks are dlmalloc's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that dlmalloc wants.
        take(layout).unwrap_or_else(|| unsafe { GlobalDlmalloc.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let is_short = layout.size() <= LONGEST_OF_ZEROS;
        let Some(block) = is_short.then(|| take(layout)).flatten() else {
            // SAFETY: as above. Pages that the kernel has just provided are not written.
            return unsafe { GlobalDlmalloc.alloc_zeroed(layout) };
        };
        // SAFETY: the block is new and has this length.
        unsafe { block.write_bytes(0, layout.size()) };
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match begin_of(block) {
            Some(begin) => {
                resize_last(begin, layout, 0);
            }
            // SAFETY: a block that is not in the arena came from dlmalloc.
            None => unsafe { GlobalDlmalloc.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(begin) = begin_of(block) else {
            // SAFETY: as in `dealloc`.
            return unsafe { GlobalDlmalloc.realloc(block, layout, size) };
        };
        if resize_last(begin, layout, size) || size <= layout.size() {
            return block;
        }
        // SAFETY: the caller promises that the size is valid for this alignment.
        let longer = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not 0: it is more than that of the block.
        let new = unsafe { self.alloc(longer) };
        if !new.is_null() {
            // SAFETY: both blocks have these bytes, and the new one is another one.
            unsafe { new.copy_from_nonoverlapping(block, layout.size()) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use std::{panic, thread};

    use super::*;

    /// Whether a block is in the arena.
    fn is_in_arena<T>(block: &[T]) -> bool {
        begin_of(block.as_ptr().cast_mut().cast()).is_some()
    }

    #[test]
    fn only_the_thread_that_owns_the_arena_takes_blocks_of_it() {
        let owner = thread::spawn(|| {
            own_arena();
            let block = vec![1u8; 100];
            assert!(is_in_arena(&block));
            block
        });
        let mut block = owner.join().unwrap();
        own_arena();
        assert!(!is_in_arena(&*Box::new([2u8; 100])), "it has an owner");
        // Another thread may lengthen and free what the owner has left.
        block.extend([3; 100]);
        assert!(!is_in_arena(&block));
        assert_eq!((block[99], block[100], block.len()), (1, 3, 200));
        uses_the_arena();
    }

    /// What the owner does, in this thread: the owner above has ended.
    fn uses_the_arena() {
        let begin = |it: &Vec<u8>| begin_of(it.as_ptr().cast_mut());
        USED.set(4096);
        let mut last = vec![4u8; 16];
        last.reserve_exact(1000);
        assert_eq!(
            begin(&last),
            Some(4096),
            "the last block grows in its place"
        );
        assert_eq!(last, [4; 16]);
        drop(last);
        let next = vec![5u8; 64];
        assert_eq!(begin(&next), Some(4096), "the last block is used again");
        drop(next);
        let zeroed = vec![0u8; 64];
        assert!(is_in_arena(&zeroed) && zeroed.iter().all(|it| *it == 0));
        assert!(!is_in_arena(&vec![0u8; LONGEST_OF_ZEROS + 1]));
        assert!(is_in_arena(&vec![1u8; LONGEST_OF_ZEROS + 1]));
        assert!(!is_in_arena(&vec![1u8; LONGEST + 1]), "a long block");
        USED.set(SIZE - ALIGN);
        assert!(!is_in_arena(&*Box::new([6u8; ALIGN + 1])), "no place");
        let mut end = vec![7u8; 2];
        assert!(is_in_arena(&end));
        end.extend([8; 100]);
        assert!(!is_in_arena(&end) && end[..3] == [7, 7, 8]);
        // The exception of a panic has its place after a block of any length.
        for length in 1..32 {
            USED.set(4096);
            let before = vec![9u8; length];
            let unwound = panic::catch_unwind(|| panic::resume_unwind(Box::new(length)));
            assert!(unwound.is_err() && begin(&before) == Some(4096));
        }
        USED.set(NOT_OURS);
    }
}
