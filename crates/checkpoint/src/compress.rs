//! Compression of chunks. Contexts of zstd cost more to make than a small chunk to compress, so each thread keeps its own.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

/// Fast enough to keep up with a disk; higher levels gain little on what agents make.
pub(crate) const LEVEL: i32 = 1;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The data compressed; `None` when that makes it no smaller.
pub(crate) fn compress(data: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::new(LEVEL).ok()?),
        };
        // there is no room for more than it may be, so an error says that it would be
        let mut packed = Vec::with_capacity(data.len().checked_sub(1)?);
        compressor.compress_to_buffer(data, &mut packed).ok()?;
        Some(packed)
    })
}

/// Decompresses into exactly the given room. Says whether the data filled it.
pub(crate) fn decompress(packed: &[u8], room: &mut [u8]) -> bool {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => match Decompressor::new() {
                Ok(made) => kept.insert(made),
                Err(_) => return false,
            },
        };
        let length = room.len();
        decompressor.decompress_to_buffer(packed, room).is_ok_and(|written| written == length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_comes_back() {
        let data = b"again and again ".repeat(1000);
        let packed = compress(&data).unwrap();
        let mut room = vec![0; data.len()];
        assert!(packed.len() < data.len() / 10 && decompress(&packed, &mut room));
        assert_eq!(room, data);
    }

    #[test]
    fn what_does_not_get_smaller_is_left() {
        let noise: Vec<u8> = (0..100u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        for data in [&noise[..], &noise[..1], &[]] {
            assert_eq!(compress(data), None);
        }
        // and a failure does not spoil the next
        assert!(compress(&[7; 4096]).is_some());
    }

    #[test]
    fn another_length_than_was_told_is_refused() {
        let packed = compress(&[7; 4096]).unwrap();
        for length in [0, 1, 4095, 4097] {
            assert!(!decompress(&packed, &mut vec![0; length]), "{length}");
        }
        assert!(!decompress(&packed[..packed.len() - 1], &mut vec![0; 4096]));
        assert!(decompress(&packed, &mut vec![0; 4096]));
    }
}
