//! Recipes sealed: in the inode if short, else as a tree of blocks.
//!
//! A short recipe is sealed into the [`RECIPE_MAX`] bytes that an inode has for it. A long one is cut
//! into *leaves* of extents, these are listed in *nodes*, nodes in nodes above them, and the inode
//! holds the reference to the one at the root. Where to cut is decided by content, as for files
//! themselves: after an extent (or child) whose block's hash ends in certain zero bits. So an edit
//! changes the leaf it falls into and the nodes above that, and all others are the blocks they were.
//!
//! ```text
//! inode   AEAD(0 || extents)  or  AEAD(depth || branch of the root)      key: of this file alone
//! leaf    sealed like a chunk, uncompressed: 0 || copy (u32) || extents
//! node    the same: level || branches                                    level 1 is above the leaves
//! branch  reference of the child || bytes of the file below it (u64)
//! ```
//!
//! A reader's memory stays within a few times the bytes it was given, even if the writer lies. That
//! is why these blocks are not compressed, and why no block may appear twice in a tree (else a few
//! blocks could stand for billions of extents). A long file of equal chunks has equal leaves; the
//! `copy` counts them, which makes them different blocks.

use std::collections::{BTreeMap, BTreeSet};

use core::ops::Range;

use base::{BlockId, Decode, Encode, Reader, canonical_struct};
use bytes::Bytes;
use zeroize::Zeroizing;

use crate::Corrupt;
use crate::aead::{Cipher, TAG_LEN};
use crate::keys::VolumeKeys;
use crate::recipe::{Extent, Recipe};
use crate::seal::{ChunkRef, open_raw, seal_under};

/// The most bytes an inode holds of a recipe.
pub const RECIPE_MAX: usize = 512;
/// The most levels of blocks below an inode. With at least 64 entries in all but the last
/// block of a level, no recipe that fits in memory needs more.
pub const DEPTH_MAX: u8 = 6;

/// The fewest and the most entries of a leaf or node; only the last of a level may have fewer.
const GROUP_MIN: usize = 64;
const GROUP_MAX: usize = 768;
/// A group ends where these bits of a block's hash are zero: every 128 entries, so that groups have
/// 192 entries and 13 KiB on average.
const BOUNDARY_MASK: u64 = 127;

/// The longest content of a recipe block, bytes.
const CONTENT_MAX: u32 = 64 << 10;
const EXTENT_LEN_MAX: usize = 1 + CHUNK_REF_LEN;
const BRANCH_LEN: usize = CHUNK_REF_LEN + 8;
const CHUNK_REF_LEN: usize = BlockId::ENCODED_LEN + 32 + 4;
const _: () = assert!(5 + GROUP_MAX * EXTENT_LEN_MAX <= CONTENT_MAX as usize);
const _: () = assert!(GROUP_MAX * BRANCH_LEN < CONTENT_MAX as usize);
const _: () = assert!(1 + BRANCH_LEN + TAG_LEN <= RECIPE_MAX);

/// `level` of a leaf, and in an inode the mark of a recipe that is all there.
const LEAF: u8 = 0;

/// A child in the tree: its block, and how many bytes of the file it covers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Branch {
    child: ChunkRef,
    span: u64,
}
canonical_struct!(Branch { child, span });

/// A recipe as it is stored.
#[derive(Clone, Debug)]
pub struct SealedRecipe {
    /// The root of the tree of blocks; `None` if the recipe is all in `sealed`.
    pub root: Option<BlockId>,
    /// What the inode holds, at most [`RECIPE_MAX`] bytes: the recipe, or the way into the tree.
    /// Nothing for an empty file.
    pub sealed: Bytes,
    /// All blocks of the tree, the root last. They must be stored before the inode refers to them;
    /// after an edit, most are stored already.
    pub blocks: Vec<(BlockId, Bytes)>,
}

/// Seals a file's recipe. `file_tag` is the file's inode number: what is sealed into one inode does
/// not open in another. The same recipe gives the same bytes and blocks.
#[must_use]
pub fn seal_recipe(keys: &VolumeKeys, file_tag: u64, recipe: &Recipe) -> SealedRecipe {
    if recipe.extents().is_empty() {
        return SealedRecipe { root: None, sealed: Bytes::new(), blocks: Vec::new() };
    }
    if let Some(sealed) = seal_inline(keys, file_tag, recipe) {
        return SealedRecipe { root: None, sealed, blocks: Vec::new() };
    }
    let mut blocks = Vec::new();
    let mut level = seal_leaves(keys, recipe.extents(), &mut blocks);
    let mut depth = 1u8;
    while level.len() > 1 {
        level = seal_nodes(keys, depth, &level, &mut blocks);
        depth += 1;
    }
    assert!(depth <= DEPTH_MAX, "a recipe of {} extents", recipe.extents().len());
    let mut content = vec![depth];
    level[0].encode(&mut content);
    let sealed = inode_cipher(keys, file_tag).seal(&[], &content).into();
    SealedRecipe { root: Some(level[0].child.block), sealed, blocks }
}

fn seal_inline(keys: &VolumeKeys, file_tag: u64, recipe: &Recipe) -> Option<Bytes> {
    let mut content = vec![LEAF];
    for extent in recipe.extents() {
        extent.encode(&mut content);
        if content.len() + TAG_LEN > RECIPE_MAX {
            return None;
        }
    }
    Some(inode_cipher(keys, file_tag).seal(&[], &content).into())
}

fn seal_leaves(keys: &VolumeKeys, extents: &[Extent], blocks: &mut Vec<(BlockId, Bytes)>) -> Vec<Branch> {
    let mut copies: BTreeMap<BlockId, u32> = BTreeMap::new();
    let ends_group = |extent: &Extent| matches!(extent, Extent::Data(reference) if is_boundary(&reference.block));
    groups(extents, ends_group)
        .map(|group| {
            let leaf = |copy: u32| {
                let mut content = vec![LEAF];
                copy.encode(&mut content);
                group.iter().for_each(|extent| extent.encode(&mut content));
                seal_under(&keys.recipe_blocks, &content, false)
            };
            let first = leaf(0);
            let copy = copies.entry(first.reference.block).or_insert(0);
            let sealed = if *copy == 0 { first } else { leaf(*copy) };
            *copy += 1;
            blocks.push((sealed.reference.block, sealed.block));
            Branch { child: sealed.reference, span: group.iter().map(Extent::len).sum() }
        })
        .collect()
}

fn seal_nodes(keys: &VolumeKeys, level: u8, children: &[Branch], blocks: &mut Vec<(BlockId, Bytes)>) -> Vec<Branch> {
    groups(children, |branch| is_boundary(&branch.child.block))
        .map(|group| {
            let mut content = vec![level];
            group.iter().for_each(|branch| branch.encode(&mut content));
            let sealed = seal_under(&keys.recipe_blocks, &content, false);
            blocks.push((sealed.reference.block, sealed.block));
            Branch { child: sealed.reference, span: group.iter().map(|branch| branch.span).sum() }
        })
        .collect()
}

/// Cuts a list where its content says: after an entry that is a boundary, with at least
/// [`GROUP_MIN`] entries (but for the last group) and at most [`GROUP_MAX`] in each.
fn groups<T>(entries: &[T], is_boundary: impl Fn(&T) -> bool) -> impl Iterator<Item = &[T]> {
    let mut rest = entries;
    core::iter::from_fn(move || {
        let window = &rest[..rest.len().min(GROUP_MAX)];
        let boundary = window.iter().skip(GROUP_MIN - 1).position(&is_boundary);
        let (group, tail) = rest.split_at(boundary.map_or(window.len(), |at| GROUP_MIN + at));
        rest = tail;
        (!group.is_empty()).then_some(group)
    })
}

fn is_boundary(block: &BlockId) -> bool {
    u64::from_le_bytes(*block.hash.first_chunk().expect("a hash has 32 bytes")) & BOUNDARY_MASK == 0
}

/// The key of what one inode holds.
fn inode_cipher(keys: &VolumeKeys, file_tag: u64) -> Cipher {
    Cipher::new(&Zeroizing::new(*blake3::keyed_hash(&keys.recipes, &file_tag.to_le_bytes()).as_bytes()))
}

/// Reads a recipe back, asking for the blocks it needs.
///
/// Ask [`RecipeReader::needs`], fetch some or all of those, [`RecipeReader::supply`] them, and again
/// until it needs none; then [`RecipeReader::finish`]. There is a round of fetches for each level of
/// the tree: none for files of up to 7 chunks, then one up to about 10 MiB (with the default sizes),
/// two up to about 2 GiB, three up to some 500 GiB.
pub struct RecipeReader {
    nodes: Vec<Node>,
    /// The blocks asked for and not yet supplied.
    waiting: BTreeMap<BlockId, Waiting>,
    /// All blocks met so far.
    met: BTreeSet<BlockId>,
}

/// A place in the tree.
struct Node {
    level: u8,
    span: u64,
    held: Held,
}

/// What is known of what is below a place in the tree.
enum Held {
    /// Its block was not supplied yet.
    Nothing,
    /// The indices of its children.
    Children(Range<usize>),
    /// The extents themselves.
    Extents(Vec<Extent>),
}

struct Waiting {
    reference: ChunkRef,
    node: usize,
}

impl RecipeReader {
    /// Starts on the recipe of the file with inode number `file_tag` and this `size`, of which the
    /// inode holds `root` and `sealed`.
    ///
    /// # Errors
    /// If `sealed` is not of this file, or does not agree with `size` and `root`.
    pub fn new(
        keys: &VolumeKeys,
        file_tag: u64,
        size: u64,
        root: Option<BlockId>,
        sealed: &[u8],
    ) -> Result<RecipeReader, Corrupt> {
        let mut reader = RecipeReader { nodes: Vec::new(), waiting: BTreeMap::new(), met: BTreeSet::new() };
        if sealed.is_empty() {
            let empty = size == 0 && root.is_none();
            return if empty { Ok(reader) } else { Err(impossible("nothing sealed, but the file is not empty")) };
        }
        if sealed.len() > RECIPE_MAX {
            return Err(Corrupt::Length { what: "sealed recipe", len: sealed.len() });
        }
        let content = inode_cipher(keys, file_tag).open(&[], sealed)?;
        let mut input = Reader::new(&content);
        let depth = u8::decode(&mut input)?;
        if depth > DEPTH_MAX {
            return Err(impossible("a tree too deep"));
        }
        let (level, found, held) = if depth == LEAF {
            (LEAF, None, Held::Extents(decode_extents(&mut input, size)?))
        } else {
            let branches = decode_branches(&mut input, size)?;
            let [Branch { child, .. }] = branches[..] else { return Err(impossible("several roots")) };
            reader.ask(child, 0);
            (depth - 1, Some(child.block), Held::Nothing)
        };
        if found != root {
            return Err(impossible("another root than the inode names"));
        }
        reader.nodes.push(Node { level, span: size, held });
        Ok(reader)
    }

    /// The blocks that it needs now, in no particular order; none if all is there.
    #[must_use]
    pub fn needs(&self) -> Vec<ChunkRef> {
        self.waiting.values().map(|waiting| waiting.reference).collect()
    }

    /// Takes a block it asked for. Nothing happens if it has it already.
    ///
    /// # Errors
    /// If it is not what it should be; the reader is as it was before, and the same block may be
    /// tried from elsewhere. Or if it never asked for it.
    pub fn supply(&mut self, id: BlockId, block: &[u8]) -> Result<(), Corrupt> {
        let Some(&Waiting { reference, node }) = self.waiting.get(&id) else {
            return if self.met.contains(&id) { Ok(()) } else { Err(impossible("a block that was not asked for")) };
        };
        if reference.len > CONTENT_MAX {
            return Err(Corrupt::Length { what: "recipe block", len: reference.len as usize });
        }
        let Node { level, span, .. } = self.nodes[node];
        let content = open_raw(&reference, block)?;
        let mut input = Reader::new(&content);
        if u8::decode(&mut input)? != level {
            return Err(impossible("a block of another level"));
        }
        let held = if level == LEAF {
            u32::decode(&mut input)?;
            Held::Extents(decode_extents(&mut input, span)?)
        } else {
            Held::Children(self.add_children(level, &decode_branches(&mut input, span)?)?)
        };
        self.nodes[node].held = held;
        self.waiting.remove(&id);
        Ok(())
    }

    /// The recipe.
    ///
    /// # Errors
    /// If blocks are missing still.
    pub fn finish(self) -> Result<Recipe, Corrupt> {
        if !self.waiting.is_empty() {
            return Err(impossible("blocks of it are missing"));
        }
        let mut nodes = self.nodes;
        let mut extents = Vec::new();
        // The places still to be visited, the next one last.
        let mut next: Vec<usize> = if nodes.is_empty() { Vec::new() } else { vec![0] };
        while let Some(index) = next.pop() {
            match core::mem::replace(&mut nodes[index].held, Held::Nothing) {
                Held::Nothing => unreachable!("a place without a block is waited for"),
                Held::Children(children) => next.extend(children.rev()),
                Held::Extents(mut leaf) => extents.append(&mut leaf),
            }
        }
        Recipe::from_extents(extents).ok_or(impossible("a file beyond the largest size"))
    }

    /// Makes places for the children of a node at `level` and asks for them; all or nothing.
    fn add_children(&mut self, level: u8, branches: &[Branch]) -> Result<Range<usize>, Corrupt> {
        let mut fresh = BTreeSet::new();
        for branch in branches {
            let id = branch.child.block;
            if self.met.contains(&id) || !fresh.insert(id) {
                return Err(impossible("a block that is in its tree twice"));
            }
        }
        let first = self.nodes.len();
        for branch in branches {
            let node = self.nodes.len();
            self.nodes.push(Node { level: level - 1, span: branch.span, held: Held::Nothing });
            self.ask(branch.child, node);
        }
        Ok(first..self.nodes.len())
    }

    fn ask(&mut self, reference: ChunkRef, node: usize) {
        assert!(self.met.insert(reference.block), "blocks met before are refused before");
        self.waiting.insert(reference.block, Waiting { reference, node });
    }
}

fn impossible(why: &'static str) -> Corrupt {
    Corrupt::Recipe { why }
}

/// Reads extents to the end of `input`; together they cover `span` bytes.
fn decode_extents(input: &mut Reader<'_>, span: u64) -> Result<Vec<Extent>, Corrupt> {
    let extents = decode_list(input, span, Extent::len)?;
    // A list of holes alone would take ten times its encoding in memory.
    let two_holes = |pair: &[Extent]| matches!(pair, [Extent::Hole(_), Extent::Hole(_)]);
    if extents.windows(2).any(two_holes) {
        return Err(impossible("two holes in a row"));
    }
    Ok(extents)
}

/// Reads branches to the end of `input`; together they cover `span` bytes.
fn decode_branches(input: &mut Reader<'_>, span: u64) -> Result<Vec<Branch>, Corrupt> {
    decode_list(input, span, |branch: &Branch| branch.span)
}

fn decode_list<T: Decode>(input: &mut Reader<'_>, span: u64, span_of: impl Fn(&T) -> u64) -> Result<Vec<T>, Corrupt> {
    let mut list = Vec::new();
    let mut covered = 0u64;
    while !input.is_empty() {
        let entry = T::decode(input)?;
        let len = span_of(&entry);
        covered = covered.checked_add(len).ok_or(impossible("a file beyond the largest size"))?;
        if len == 0 {
            return Err(impossible("a branch that covers nothing"));
        }
        list.push(entry);
    }
    if list.is_empty() || covered != span {
        return Err(impossible("parts that do not add up to the whole"));
    }
    list.shrink_to_fit();
    Ok(list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: u64 = 77;

    fn keys() -> VolumeKeys {
        VolumeKeys::new(&[1; 32])
    }

    /// A reference to no block in particular.
    fn reference(number: u64) -> ChunkRef {
        let hash = blake3::hash(&number.to_le_bytes());
        ChunkRef { block: BlockId::blake3(*hash.as_bytes()), key: *hash.as_bytes(), len: 1 + number as u32 % 1000 }
    }

    /// Chunks, and a hole after every tenth.
    fn recipe(numbers: impl IntoIterator<Item = u64>) -> Recipe {
        let extents = numbers.into_iter().flat_map(|number| {
            let hole = number.is_multiple_of(10).then_some(Extent::Hole(number + 1));
            core::iter::once(Extent::Data(reference(number))).chain(hole)
        });
        Recipe::from_extents(extents).unwrap()
    }

    fn read(size: u64, sealed: &SealedRecipe) -> Result<Recipe, Corrupt> {
        let blocks: BTreeMap<_, _> = sealed.blocks.iter().cloned().collect();
        let mut reader = RecipeReader::new(&keys(), TAG, size, sealed.root, &sealed.sealed)?;
        for round in 0.. {
            let needs = reader.needs();
            if needs.is_empty() {
                break;
            }
            assert!(round < DEPTH_MAX);
            for needed in needs {
                reader.supply(needed.block, blocks.get(&needed.block).ok_or(impossible("not stored"))?)?;
            }
        }
        reader.finish()
    }

    fn ids(sealed: &SealedRecipe) -> BTreeSet<BlockId> {
        sealed.blocks.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn recipes_of_all_sizes_round_trip() {
        for extents in [0, 1, 6, 7, 8, 63, 64, 65, 767, 768, 769, 5_000, 100_000] {
            let recipe = recipe(1..=extents);
            let sealed = seal_recipe(&keys(), TAG, &recipe);
            assert!(sealed.sealed.len() <= RECIPE_MAX);
            assert_eq!(sealed.root.is_none(), extents <= 7, "{extents}");
            assert_eq!(sealed.root, sealed.blocks.last().map(|(id, _)| *id), "the root comes last");
            assert_eq!(ids(&sealed).len(), sealed.blocks.len());
            assert!(sealed.blocks.iter().all(|(id, block)| id.hash == *blake3::hash(block).as_bytes()));
            assert!(sealed.blocks.iter().all(|(_, block)| block.len() <= CONTENT_MAX as usize + 17));
            assert!(read(recipe.size(), &sealed).unwrap() == recipe, "{extents}");
            let again = seal_recipe(&keys(), TAG, &recipe);
            assert_eq!((again.root, again.sealed, again.blocks), (sealed.root, sealed.sealed, sealed.blocks));
        }
    }

    #[test]
    fn an_edit_keeps_nearly_all_recipe_blocks() {
        let whole = recipe(1..=100_000);
        let before = ids(&seal_recipe(&keys(), TAG, &whole));
        assert!((350..800).contains(&before.len()), "{} blocks", before.len());
        let new = || Extent::Data(reference(1 << 40));
        for at in [0, 1, 50_000, 99_999] {
            for replaced in [0, 1, 3] {
                let mut edited = whole.clone();
                edited.splice(at..at + replaced, [new()]);
                let after = seal_recipe(&keys(), TAG, &edited);
                let kept = after.blocks.iter().filter(|(id, _)| before.contains(id)).count();
                assert!(kept * 100 > after.blocks.len() * 95, "{kept} of {} at {at}", after.blocks.len());
                assert!(after.blocks.len() - kept <= 6, "{kept} of {} at {at}", after.blocks.len());
            }
        }
    }

    #[test]
    fn a_file_of_equal_chunks_has_distinct_leaves() {
        let recipe = Recipe::from_extents((0..20_000).map(|_| Extent::Data(reference(5)))).unwrap();
        let sealed = seal_recipe(&keys(), TAG, &recipe);
        assert_eq!(ids(&sealed).len(), sealed.blocks.len());
        assert!(read(recipe.size(), &sealed).unwrap() == recipe);
        let (head, tail) = recipe.extents().split_at(15_000);
        let shorter = seal_recipe(&keys(), TAG, &Recipe::from_extents(head.iter().copied()).unwrap());
        let new = ids(&shorter).difference(&ids(&sealed)).count();
        assert!(new <= 2, "a leaf and the root change when {} are cut off, not {new}", tail.len());
    }

    #[test]
    fn a_recipe_opens_for_its_own_file_only() {
        for extents in [3, 500] {
            let recipe = recipe(1..=extents);
            let SealedRecipe { root, sealed, .. } = seal_recipe(&keys(), TAG, &recipe);
            let size = recipe.size();
            let open = |keys: &VolumeKeys, tag, size, root, sealed: &[u8]| {
                RecipeReader::new(keys, tag, size, root, sealed).err()
            };
            assert_eq!(open(&keys(), TAG, size, root, &sealed), None);
            assert_eq!(open(&keys(), TAG + 1, size, root, &sealed), Some(Corrupt::Seal));
            assert_eq!(open(&VolumeKeys::new(&[2; 32]), TAG, size, root, &sealed), Some(Corrupt::Seal));
            assert!(matches!(open(&keys(), TAG, size + 1, root, &sealed), Some(Corrupt::Recipe { .. })));
            let other = Some(reference(1).block);
            assert!(matches!(open(&keys(), TAG, size, other, &sealed), Some(Corrupt::Recipe { .. })));
            assert!(matches!(open(&keys(), TAG, size, root, &[]), Some(Corrupt::Recipe { .. })));
            assert!(matches!(open(&keys(), TAG, size, root, &[0; 513]), Some(Corrupt::Length { .. })));
            for at in 0..sealed.len() {
                let mut altered = sealed.to_vec();
                altered[at] ^= 4;
                assert_eq!(open(&keys(), TAG, size, root, &altered), Some(Corrupt::Seal));
            }
        }
    }

    #[test]
    fn a_wrong_block_is_refused_and_the_right_one_still_taken() {
        let recipe = recipe(1..=2_000);
        let sealed = seal_recipe(&keys(), TAG, &recipe);
        let blocks: BTreeMap<_, _> = sealed.blocks.iter().cloned().collect();
        let mut reader = RecipeReader::new(&keys(), TAG, recipe.size(), sealed.root, &sealed.sealed).unwrap();
        assert!(matches!(reader.supply(reference(1).block, &[0; 100]), Err(Corrupt::Recipe { .. })));
        while let [needed, ..] = reader.needs()[..] {
            let right = &blocks[&needed.block];
            let mut altered = right.to_vec();
            altered[right.len() / 2] ^= 1;
            let before = reader.needs();
            assert_eq!(reader.supply(needed.block, &altered), Err(Corrupt::Seal));
            assert!(matches!(reader.supply(needed.block, &right[..9]), Err(Corrupt::Length { .. })));
            assert_eq!(reader.needs(), before);
            assert_eq!(reader.supply(needed.block, right), Ok(()));
            assert_eq!(reader.supply(needed.block, right), Ok(()), "what it has is no news");
            assert!(!reader.needs().contains(&needed));
        }
        assert!(reader.finish().unwrap() == recipe);
        let reader = RecipeReader::new(&keys(), TAG, recipe.size(), sealed.root, &sealed.sealed).unwrap();
        assert!(reader.finish().is_err(), "nothing was supplied");
    }

    /// A recipe whose root block has this content, by a writer who has the keys.
    fn lie(depth: u8, span: u64, content: &[u8]) -> SealedRecipe {
        let root = seal_under(&keys().recipe_blocks, content, false);
        let branch = Branch { child: root.reference, span };
        let sealed = inode_cipher(&keys(), TAG).seal(&[], &[vec![depth], branch.to_bytes()].concat());
        let blocks = vec![(root.reference.block, root.block)];
        SealedRecipe { root: Some(root.reference.block), sealed: sealed.into(), blocks }
    }

    fn leaf(extents: &[Extent]) -> Vec<u8> {
        let extents: Vec<u8> = extents.iter().flat_map(Encode::to_bytes).collect();
        [vec![LEAF], 0u32.to_bytes(), extents].concat()
    }

    fn node(level: u8, branches: &[Branch]) -> Vec<u8> {
        [vec![level], branches.iter().flat_map(Encode::to_bytes).collect()].concat()
    }

    #[test]
    fn lies_are_refused() {
        let (hole, data) = (Extent::Hole(10), Extent::Data(reference(9)));
        assert!(read(20, &lie(1, 20, &leaf(&[hole, data]))).is_ok(), "this one is true");
        let branch = |number, span| Branch { child: reference(number), span };
        let child = seal_under(&keys().recipe_blocks, &leaf(&[hole]), false);
        let repeated = Branch { child: child.reference, span: 10 };
        let (sum, level) = ("parts that do not add up to the whole", "a block of another level");
        let lies = [
            (21, lie(1, 21, &leaf(&[hole, data])), sum),
            (19, lie(1, 19, &leaf(&[hole, data])), sum),
            (10, lie(1, 10, &leaf(&[])), sum),
            (0, lie(1, 0, &leaf(&[])), "a branch that covers nothing"),
            (10, lie(DEPTH_MAX + 1, 10, &leaf(&[hole])), "a tree too deep"),
            (10, lie(2, 10, &leaf(&[hole])), level),
            (10, lie(1, 10, &node(1, &[branch(1, 10)])), level),
            (10, lie(2, 10, &node(2, &[branch(1, 10)])), level),
            (1, lie(2, 1, &node(1, &[branch(1, u64::MAX), branch(2, 2)])), "a file beyond the largest size"),
            (10, lie(2, 10, &node(1, &[branch(1, 0), branch(2, 10)])), "a branch that covers nothing"),
            (20, lie(2, 20, &node(1, &[repeated, repeated])), "a block that is in its tree twice"),
            (20, lie(1, 20, &leaf(&[hole, hole])), "two holes in a row"),
            (u64::MAX, lie(1, u64::MAX, &leaf(&[Extent::Hole(u64::MAX)])), "a file beyond the largest size"),
        ];
        for (size, lie, why) in lies {
            assert_eq!(read(size, &lie), Err(impossible(why)));
        }
        let sealed = inode_cipher(&keys(), TAG).seal(&[], &[LEAF]).into();
        let nothing = SealedRecipe { root: None, sealed, blocks: Vec::new() };
        assert_eq!(read(0, &nothing), Err(impossible(sum)), "an empty file has nothing sealed");
        let cut = lie(1, 10, &[leaf(&[hole]), vec![0]].concat());
        assert!(matches!(read(10, &cut), Err(Corrupt::Encoding(_))));
        let long = seal_under(&keys().recipe_blocks, &vec![0; CONTENT_MAX as usize + 1], false);
        let branch = Branch { child: long.reference, span: 10 };
        let sealed = inode_cipher(&keys(), TAG).seal(&[], &[vec![1], branch.to_bytes()].concat()).into();
        let blocks = vec![(long.reference.block, long.block)];
        let lie = SealedRecipe { root: Some(long.reference.block), sealed, blocks };
        assert!(matches!(read(10, &lie), Err(Corrupt::Length { what: "recipe block", .. })));
    }

    #[test]
    fn nodes_that_share_a_child_are_refused() {
        let shared = seal_under(&keys().recipe_blocks, &leaf(&[Extent::Hole(10)]), false);
        let branch = |child, span| Branch { child, span };
        let one = seal_under(&keys().recipe_blocks, &node(1, &[branch(shared.reference, 10)]), false);
        let others = [branch(reference(3), 1), branch(shared.reference, 10)];
        let two = seal_under(&keys().recipe_blocks, &node(1, &others), false);
        let sealed = lie(3, 21, &node(2, &[branch(one.reference, 10), branch(two.reference, 11)]));
        let mut reader = RecipeReader::new(&keys(), TAG, 21, sealed.root, &sealed.sealed).unwrap();
        assert_eq!(reader.supply(sealed.blocks[0].0, &sealed.blocks[0].1), Ok(()));
        assert_eq!(reader.supply(one.reference.block, &one.block), Ok(()));
        let before = reader.needs();
        let refused = reader.supply(two.reference.block, &two.block);
        assert_eq!(refused, Err(impossible("a block that is in its tree twice")));
        assert_eq!(reader.needs(), before, "a refused block leaves nothing behind");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn arbitrary_content_never_panics(depth in 0u8..9, span: u64, mut content: Vec<u8>, level in 0u8..4) {
            content.insert(0, level);
            let _ = read(span, &lie(depth, span, &content));
            let sealed = inode_cipher(&keys(), TAG).seal(&[], &content).into();
            let _ = read(span, &SealedRecipe { root: None, sealed, blocks: Vec::new() });
        }

        #[test]
        fn groups_keep_all_entries(entries in proptest::collection::vec(any::<u8>(), 0..3000), every in 1u8..) {
            let all: Vec<&[u8]> = groups(&entries, |entry| entry % every == 0).collect();
            prop_assert_eq!(&all.concat(), &entries);
            for (index, group) in all.iter().enumerate() {
                prop_assert!(group.len() <= GROUP_MAX);
                prop_assert!(group.len() >= GROUP_MIN || index == all.len() - 1);
            }
        }
    }
}
