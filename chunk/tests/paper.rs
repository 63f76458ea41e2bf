//! The claims of LBFS, FastCDC and convergent encryption that storage relies on, one test each.

use std::collections::BTreeSet;

use base::BlockId;
use chunk::{Corrupt, Cutter, SealedChunk, Sizes, VolumeKeys, is_zero, open, seal};
use proptest::prelude::*;

fn keys(secret: u8) -> VolumeKeys {
    VolumeKeys::new(&[secret; 32])
}

/// The same noise every time.
fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_derive_key(seed).finalize_xof().fill(&mut bytes);
    bytes
}

/// Sizes small enough for many chunks in little time.
fn small() -> Sizes {
    Sizes::new(512, 2048, 8192).unwrap()
}

fn blocks(cutter: &Cutter, keys: &VolumeKeys, file: &[u8]) -> Vec<BlockId> {
    cutter.chunks(file).map(|chunk| seal(keys, chunk).reference.block).collect()
}

/// How many blocks of `new` are not among those of `old`.
fn fresh(old: &[BlockId], new: &[BlockId]) -> usize {
    new.iter().collect::<BTreeSet<_>>().difference(&old.iter().collect()).count()
}

/// "Insertions and deletions therefore only affect the surrounding chunks" (LBFS, SOSP'01 §3.1).
#[test]
fn an_edit_changes_only_the_chunks_around_it() {
    let (keys, cutter) = (keys(1), Cutter::new(small(), &keys(1)));
    let file = noise("an edit", 1 << 20);
    let before = blocks(&cutter, &keys, &file);
    assert!(before.len() > 300);
    for at in [0, 1, file.len() / 2, file.len()] {
        let mut inserted = file.clone();
        inserted.splice(at..at, *b"eleven more");
        let new = fresh(&before, &blocks(&cutter, &keys, &inserted));
        assert!((1..=4).contains(&new), "{new} new chunks after an insertion at {at}");
        let mut deleted = file.clone();
        deleted.drain(at.saturating_sub(100)..(at + 100).min(file.len()));
        let new = fresh(&before, &blocks(&cutter, &keys, &deleted));
        assert!((1..=4).contains(&new), "{new} new chunks after a deletion at {at}");
    }
}

/// With blocks of a fixed size, one byte inserted at the front shifts every boundary and changes every
/// block (ibid.): what the test above would find if cutting did not look at the content.
#[test]
fn an_insertion_changes_every_block_of_fixed_size() {
    let keys = keys(1);
    let file = noise("an edit", 1 << 18);
    let cut = |file: &[u8]| file.chunks(2048).map(|chunk| seal(&keys, chunk).reference.block).collect::<Vec<_>>();
    let inserted = [b"x", &file[..]].concat();
    assert_eq!(fresh(&cut(&file), &cut(&inserted)), cut(&inserted).len());
}

/// The lengths of the chunks of `bytes`, which are at `offset` in their file.
fn lens_at(cutter: &Cutter, offset: u64, bytes: &[u8]) -> Vec<usize> {
    let (mut lens, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        lens.push(cutter.cut(offset + at as u64, &bytes[at..], true));
        at += lens[lens.len() - 1];
    }
    lens
}

/// Chunks have a minimum and a maximum size (LBFS §3.1.1), and normalised chunking brings most of
/// them near the expected one (FastCDC, ATC'16); a quarter of that in a file's first 16 MiB.
#[test]
fn chunks_are_within_bounds_and_near_the_average() {
    let cutter = Cutter::new(Sizes::default(), &keys(1));
    let file = noise("sizes", 16 << 20);
    for (offset, average) in [(0, 16 << 10), (16 << 20, 64 << 10), (1 << 40, 64 << 10)] {
        let lens = lens_at(&cutter, offset, &file);
        assert_eq!(lens.iter().sum::<usize>(), file.len());
        let (_, all_but_last) = lens.split_last().unwrap();
        assert!(all_but_last.iter().all(|len| (average / 4..=average * 4).contains(len)));
        let mean = file.len() / lens.len();
        assert!((average..average * 3 / 2).contains(&mean), "a mean of {mean} at {offset}");
        let near = all_but_last.iter().filter(|len| (average / 2..average * 2).contains(*len)).count();
        assert!(near * 10 > lens.len() * 8, "{near} of {} are near the average", lens.len());
    }
}

/// A small edit of a file of ten megabytes costs less than a hundredth of it, wherever it is (LBFS's
/// promise; the first chunk is as good a place as any).
#[test]
fn a_small_edit_costs_less_than_a_hundredth() {
    let file = noise("ten megabytes", 10 << 20);
    for secret in 1..=4 {
        let cutter = Cutter::new(Sizes::default(), &keys(secret));
        let before: BTreeSet<&[u8]> = cutter.chunks(&file).collect();
        for at in [0, 1 << 20, 5 << 20, file.len() - 1] {
            let mut inserted = file.clone();
            inserted.insert(at, 7);
            let new: usize = cutter.chunks(&inserted).filter(|chunk| !before.contains(chunk)).map(<[u8]>::len).sum();
            assert!(new * 100 < file.len(), "{new} bytes after one was inserted at {at}, secret {secret}");
        }
    }
}

/// The pathological case (LBFS §3.1.1): in a file of zeroes no boundary is found. It is cut at the
/// maximum, and is a hole anyway.
#[test]
fn without_boundaries_chunks_have_the_largest_size() {
    // Of all secrets few make a boundary of zeroes.
    let cutter = Cutter::new(small(), &keys(2));
    assert_eq!(lens_at(&cutter, 1 << 20, &[0; 20_000]), [8192, 8192, 20_000 - 2 * 8192]);
    let lens: Vec<usize> = cutter.chunks(&[0; 5000]).map(<[u8]>::len).collect();
    assert_eq!(lens, [2048, 2048, 5000 - 2 * 2048]);
    assert!(cutter.chunks(&[0; 20_000]).all(is_zero));
    assert_eq!(cutter.chunks(&[]).count(), 0);
}

/// The lengths of chunks identify content if anybody can compute them (attacks on backup programs
/// that cut by content, 2025): under another secret, the boundaries are others.
#[test]
fn boundaries_depend_on_the_secret() {
    let file = noise("boundaries", 1 << 20);
    let ends = |secret| {
        let mut end = 0;
        let cutter = Cutter::new(small(), &keys(secret));
        cutter
            .chunks(&file)
            .map(|chunk| {
                end += chunk.len();
                end
            })
            .collect::<BTreeSet<usize>>()
    };
    let (one, other) = (ends(1), ends(2));
    assert_eq!(one, ends(1));
    // Of some 400 boundaries in a million places, chance makes none or one equal, besides the end.
    assert!(one.intersection(&other).count() <= 4, "{}", one.intersection(&other).count());
}

/// Convergent encryption (FARSITE, OSDI'02): equal plaintexts have equal ciphertexts, whoever
/// encrypts them, so the store keeps one.
#[test]
fn equal_chunks_are_equal_blocks_within_a_secret() {
    for plain in [noise("equal", 50_000), b"compressible ".repeat(5000)] {
        let (one, other) = (seal(&keys(1), &plain), seal(&VolumeKeys::new(&[1; 32]), &plain));
        assert_eq!((one.reference, &one.block), (other.reference, &other.block));
        assert_eq!(one.reference.block, BlockId::blake3(*blake3::hash(&one.block).as_bytes()));
        assert_eq!(open(&one.reference, &one.block).unwrap(), plain);
    }
}

/// Confirmation of a file, and learning its remaining information: the attacks on convergent
/// encryption that Tahoe-LAFS's convergence secret stops. Who guesses the content but lacks the
/// secret makes neither the block, nor its name, nor its key.
#[test]
fn a_guess_cannot_be_confirmed_without_the_secret() {
    let guess = noise("guessed right", 40_000);
    let stored = seal(&keys(1), &guess);
    for secret in 2..20 {
        let tried = seal(&keys(secret), &guess);
        assert_ne!(tried.reference.block, stored.reference.block);
        assert_ne!(tried.reference.key, stored.reference.key);
        assert_ne!(tried.block, stored.block);
        assert_eq!(open(&tried.reference, &stored.block), Err(Corrupt::Seal));
    }
    for key in [*blake3::hash(&guess).as_bytes(), [0; 32]] {
        let unkeyed = chunk::ChunkRef { key, ..stored.reference };
        assert_eq!(open(&unkeyed, &stored.block), Err(Corrupt::Seal));
    }
}

/// Nobody who stores a block is trusted with it: any altered bit, anywhere, is noticed.
#[test]
fn an_altered_block_is_corrupt() {
    for plain in [noise("altered", 300), b"compressible ".repeat(100)] {
        let SealedChunk { reference, block } = seal(&keys(1), &plain);
        for at in 0..block.len() {
            let mut altered = block.to_vec();
            altered[at] ^= 1 << (at % 8);
            assert_eq!(open(&reference, &altered), Err(Corrupt::Seal));
            assert!(open(&reference, &block[..at]).is_err());
        }
        assert_eq!(open(&reference, &[&block[..], b"x"].concat()), Err(Corrupt::Seal));
    }
}

/// Boundaries are part of the stored format: if this fails, new data no longer deduplicates against
/// what is stored (it can still be read).
#[test]
fn golden_cut_points() {
    let file = noise("golden", 2 << 20);
    let lens = |sizes, offset| lens_at(&Cutter::new(sizes, &keys(1)), offset, &file)[..12].to_vec();
    let behind = 1 << 30;
    assert_eq!(
        lens(Sizes::default(), 0),
        [17777, 13689, 21688, 6626, 17737, 17302, 20453, 16471, 17072, 17246, 18951, 21122]
    );
    assert_eq!(lens(small(), 0), [713, 548, 963, 135, 589, 528, 675, 314, 666, 557, 727, 525]);
    assert_eq!(
        lens(Sizes::default(), behind),
        [72811, 68179, 76149, 81179, 71567, 87984, 71861, 73510, 27403, 70168, 68164, 66766]
    );
    assert_eq!(lens(small(), behind), [669, 744, 2655, 2535, 714, 2261, 2133, 2156, 5314, 2017, 2137, 2754]);
    let smallest = Sizes::new(64, 256, 1024).unwrap();
    assert_eq!(lens(smallest, 0), lens(smallest, behind));
    assert_eq!(lens(smallest, behind), [268, 383, 260, 198, 363, 296, 298, 293, 308, 279, 333, 208]);
}

/// The sealed form is part of the stored format: if the first fails, stored chunks may no longer
/// open. The second depends on the release of zstd as well, and there only deduplication is lost.
#[test]
fn golden_blocks() {
    let sealed = seal(&keys(1), &noise("golden", 1000));
    assert_eq!(
        sealed.reference.block.to_string(),
        "01-3167e60d4771ea5ca2c4838500229563e709553ee9ae629d4a5cf2e9472b2634"
    );
    assert_eq!(
        BlockId::blake3(sealed.reference.key).to_string(),
        "01-0f7d524f10ad50a50300194ad4136dbe1d783c2f019db5d6363f01fb92adb17d"
    );
    let sealed = seal(&keys(1), &b"compressible ".repeat(100));
    assert_eq!(
        sealed.reference.block.to_string(),
        "01-8930e99cf475c7349b98c6c83653ad27de75f48823c9389c6ecdd75c5553ba26"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn chunks_round_trip(plain in proptest::collection::vec(any::<u8>(), 1..3000), repeat in 1usize..20) {
        let plain = plain.repeat(repeat);
        let SealedChunk { reference, block } = seal(&keys(1), &plain);
        prop_assert_eq!(reference.len as usize, plain.len());
        prop_assert!(block.len() <= plain.len() + 17);
        prop_assert_eq!(open(&reference, &block).unwrap(), plain);
    }

    /// A cutter that sees the file piece by piece cuts where one that sees it whole does.
    #[test]
    fn cutting_a_stream_is_cutting_the_whole(
        seed in "[a-z]{4}", len in 0usize..600_000, pieces in proptest::collection::vec(1usize..50_000, 1..8)
    ) {
        let cutter = Cutter::new(small(), &keys(1));
        let file = noise(&seed, len);
        let whole: Vec<usize> = cutter.chunks(&file).map(<[u8]>::len).collect();
        let (mut streamed, mut start, mut end) = (Vec::new(), 0, 0);
        for piece in pieces.iter().cycle() {
            loop {
                let cut = cutter.cut(start as u64, &file[start..end], end == file.len());
                if cut == 0 {
                    prop_assert!(end - start < 8192, "enough bytes must do");
                    break;
                }
                streamed.push(cut);
                start += cut;
            }
            if end == file.len() {
                break;
            }
            end = (end + piece).min(file.len());
        }
        prop_assert_eq!(streamed, whole);
    }

    #[test]
    fn arbitrary_blocks_never_panic(block: Vec<u8>, len in 1u32..2_000_000) {
        let reference = chunk::ChunkRef { len, ..seal(&keys(1), b"x").reference };
        prop_assert!(open(&reference, &block).is_err());
    }
}
