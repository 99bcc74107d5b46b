//! Whether a file is as long as its own headers say: ffmpeg reads a file that was cut short as far as it goes, and is content.

/// Bytes of the file's beginning that are looked at.
pub(crate) const HEAD: u64 = 64 * 1024;
/// Bytes of its end: more than the longest page of Ogg.
pub(crate) const TAIL: u64 = 128 * 1024;

/// Sizes from here on stand for "not known" in files that were written as a stream.
const UNKNOWN: u64 = 0x7FFF_0000;

/// Says what is missing of a file of `size` bytes that begins with `head` and ends with `tail`.
pub(crate) fn check(head: &[u8], tail: &[u8], size: u64) -> Result<(), String> {
    if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WAVE") {
        return wave(head, size);
    }
    if head.starts_with(b"OggS") {
        return ogg(tail);
    }
    Ok(())
}

fn wave(head: &[u8], size: u64) -> Result<(), String> {
    let mut at = 12_usize;
    while let (Some(name), Some(length)) = (head.get(at..at + 4), head.get(at + 4..at + 8)) {
        let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
        if name == b"data" {
            let there = size.saturating_sub(at as u64 + 8);
            return if length != 0 && length < UNKNOWN && there < length {
                Err(format!("its header announces {length} bytes of sound, {there} are there"))
            } else {
                Ok(())
            };
        }
        // Chunks begin at even places.
        let next = (at as u64 + 8).saturating_add(length.next_multiple_of(2));
        at = match usize::try_from(next) {
            Ok(next) if next < head.len() => next,
            _ => break,
        };
    }
    Ok(())
}

fn ogg(tail: &[u8]) -> Result<(), String> {
    let is_page =
        |at: &usize| tail[*at..].starts_with(b"OggS\0") && tail.get(at + 5).is_some_and(|kind| *kind < 8);
    let Some(last) = (0..tail.len()).rev().find(is_page) else {
        return Err("it ends inside a page".to_owned());
    };
    let page = &tail[last..];
    let whole = page.get(26).and_then(|count| page.get(27..27 + usize::from(*count))).map(|segments| {
        27 + segments.len() + segments.iter().map(|segment| usize::from(*segment)).sum::<usize>()
    });
    match whole {
        Some(whole) if whole <= page.len() => Ok(()),
        _ => Err("its last page is not whole".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave_of(announced: u32, there: usize) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0................LIST\x03\0\0\0abc\0data".to_vec();
        file.extend(announced.to_le_bytes());
        file.resize(file.len() + there, 1);
        file
    }

    fn judged(file: &[u8]) -> Result<(), String> {
        check(file, file, file.len() as u64)
    }

    #[test]
    fn a_wave_file_holds_what_its_header_announces() {
        assert_eq!(judged(&wave_of(100, 100)), Ok(()));
        assert_eq!(judged(&wave_of(100, 104)), Ok(()), "further chunks may follow");
        assert!(judged(&wave_of(100, 60)).unwrap_err().contains("100 bytes of sound, 60"));
        for unknown in [0, u32::MAX, 0x7FFF_FFFF, 0x7FFF_F000] {
            assert_eq!(judged(&wave_of(unknown, 60)), Ok(()), "{unknown:x} was written by a stream");
        }
        assert_eq!(judged(b"RIFF\0\0\0\0WAVE"), Ok(()), "ffprobe says what is wrong with it");
        assert_eq!(judged(b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff"), Ok(()));
    }

    fn page(content: usize) -> Vec<u8> {
        let mut page = b"OggS\0\0".to_vec();
        page.resize(26, 0);
        page.push(1);
        page.push(u8::try_from(content).unwrap());
        page.resize(page.len() + content, 7);
        page
    }

    #[test]
    fn an_ogg_file_ends_with_a_whole_page() {
        let whole = [page(40), page(30)].concat();
        assert_eq!(judged(&whole), Ok(()));
        for cut in 1..=28 + 30 - 6 {
            assert!(judged(&whole[..whole.len() - cut]).unwrap_err().contains("not whole"), "{cut}");
        }
        assert!(check(b"OggS", &[0; 100], 1_000_000).is_err());
    }

    #[test]
    fn others_are_ffmpegs_to_judge() {
        assert_eq!(judged(b"fLaC"), Ok(()));
        assert_eq!(judged(b""), Ok(()));
    }
}
