//! memcpy(3) of programs that are linked with musl on x86-64.
//!
//! An ADD of bridge copies well over a thousand pieces, most of them shorter than 64 bytes. musl copies
//! them with `rep movs`, which takes the processor dozens of cycles to begin, and single bytes.
//!
//! LLVM replaces a loop that copies by a call of `memcpy`, but not in a function of that name
//! (LoopIdiomRecognize.cpp); so the one loop is in it, and other copies are single instructions.
//!
//! Cost: this file. Gain: when 500 pods start at once, 4 % of the processor time of their ADDs, of which
//! musl's `memcpy` took a fifth of what a plugin spends outside of the kernel; 2 % of an ADD alone.

#![allow(unsafe_code, reason = "a function of the C library")]

use std::arch::asm;

/// The block that a loop copies at once.
type Block = u128;

/// From this length on, the processor's own copy is as fast.
const LONG: usize = 1024;

/// Copies `length` bytes: memcpy(3).
///
/// # Safety
/// `from` has `length` bytes to read, and `to` has them to write; they do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: each branch copies bytes below `length`, by the contract of this function.
    unsafe {
        match length {
            0 => {}
            1 => to.write(from.read()),
            2..4 => copy_ends::<u16>(to, from, length),
            4..8 => copy_ends::<u32>(to, from, length),
            8..16 => copy_ends::<u64>(to, from, length),
            16..LONG => {
                let mut at = 0;
                while at + size_of::<Block>() < length {
                    copy_at::<Block>(to, from, at);
                    at += size_of::<Block>();
                }
                copy_at::<Block>(to, from, length - size_of::<Block>());
            }
            LONG.. => copy_forward(to, from, length),
        }
    }
    to
}

/// The same for pieces that may overlap: memmove(3). musl's needs musl's `memcpy`.
///
/// # Safety
/// As [`memcpy`] otherwise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    let ahead = to.addr().wrapping_sub(from.addr());
    // SAFETY: by contract; what overlaps is read before it is written.
    unsafe {
        if ahead >= length && ahead.wrapping_neg() >= length {
            memcpy(to, from, length);
        } else if ahead >= length {
            copy_forward(to, from, length);
        } else if length > 0 {
            let last = length - 1;
            asm!(
                "std", "rep movsb", "cld",
                inout("rcx") length => _,
                inout("rsi") from.add(last) => _, inout("rdi") to.add(last) => _,
                options(nostack)
            );
        }
    }
    to
}

/// Copies from the first byte to the last.
///
/// # Safety
/// As [`memmove`]; `to` is not within the bytes after the first of `from`.
unsafe fn copy_forward(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: by contract.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") length => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies the first bytes and the last ones; they may overlap.
///
/// # Safety
/// As [`memcpy`]; `T` is not longer than `length`, and at least half as long.
unsafe fn copy_ends<T: Copy>(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: by contract.
    unsafe {
        copy_at::<T>(to, from, 0);
        copy_at::<T>(to, from, length - size_of::<T>());
    }
}

/// Copies the bytes of one `T`: a load and a store, no call of [`memcpy`].
///
/// # Safety
/// Both have a `T` at this place.
unsafe fn copy_at<T: Copy>(to: *mut u8, from: *const u8, at: usize) {
    // SAFETY: by contract.
    unsafe {
        let value = from.add(at).cast::<T>().read_unaligned();
        to.add(at).cast::<T>().write_unaligned(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_at_every_alignment_and_nothing_beside_it() {
        let lengths = (0..300).chain([LONG - 1, LONG, LONG + 1, 5000]);
        let source: Vec<u8> = (0..5100).map(|it| (it % 251) as u8 + 1).collect();
        for length in lengths {
            for (skip, place) in (0..17).flat_map(|it| [(it, 0), (0, it), (it, 16 - it)]) {
                let mut target = vec![0; place + length + 1];
                let to = target[place..].as_mut_ptr();
                // SAFETY: both have the length.
                let returned = unsafe { memcpy(to, source[skip..].as_ptr(), length) };
                assert_eq!(returned, to);
                assert_eq!(target[place..place + length], source[skip..skip + length]);
                assert!(target[..place].iter().all(|it| *it == 0), "before {length}");
                assert_eq!(target[place + length], 0, "after {length}");
            }
        }
    }

    #[test]
    fn pieces_that_overlap_are_moved_as_if_they_did_not() {
        let original: Vec<u8> = (0..3000).map(|it| (it % 251) as u8).collect();
        for length in (0..70).chain([LONG - 1, LONG, LONG + 100]) {
            for (to, from) in (0..40).flat_map(|it| [(0, it), (it, 0), (it, it)]) {
                let mut moved = original.clone();
                let begin = moved.as_mut_ptr();
                // SAFETY: both places have the length.
                unsafe { memmove(begin.add(to), begin.add(from), length) };
                let mut expected = original.clone();
                expected[to..to + length].copy_from_slice(&original[from..from + length]);
                assert_eq!(moved, expected, "{length} bytes from {from} to {to}");
            }
        }
    }
}
