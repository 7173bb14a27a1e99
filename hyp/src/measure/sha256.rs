//! SHA-256 as `sha2` has it, but that the CPU does the blocks where it can, in a
//! twentieth of the instructions.

use arm64::sha256::{BLOCK, INITIAL, compress};
use sha2::block_api::compress256;
use sha2::digest::array::Array;
use sha2::digest::block_api::{
    Block, BlockSizeUser, Buffer, BufferKindUser, Eager, FixedOutputCore, OutputSizeUser,
    UpdateCore,
};
use sha2::digest::typenum::{U32, U64};
use sha2::digest::{HashMarker, Output, buffer_fixed};

buffer_fixed!(
    /// A hash under way.
    pub struct Sha256(Core);
    impl: BaseFixedTraits Default HashMarker;
);

/// What the blocks so far come to.
#[derive(Clone, Debug)]
pub struct Core {
    state: [u32; 8],
    blocks: u64,
}

fn compress_here(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    if !compress(state, blocks) {
        compress256(state, blocks);
    }
}

impl Default for Core {
    fn default() -> Self {
        Self {
            state: INITIAL,
            blocks: 0,
        }
    }
}

impl UpdateCore for Core {
    fn update_blocks(&mut self, blocks: &[Block<Self>]) {
        self.blocks += blocks.len() as u64;
        compress_here(&mut self.state, Array::cast_slice_to_core(blocks));
    }
}

impl FixedOutputCore for Core {
    fn finalize_fixed_core(&mut self, buffer: &mut Buffer<Self>, out: &mut Output<Self>) {
        let bytes = self.blocks * BLOCK as u64 + buffer.get_pos() as u64;
        let state = &mut self.state;
        buffer.len64_padding_be(8 * bytes, |block| compress_here(state, &[block.0]));
        for (bytes, word) in out.chunks_exact_mut(4).zip(state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
    }
}

impl BlockSizeUser for Core {
    type BlockSize = U64;
}

impl BufferKindUser for Core {
    type BufferKind = Eager;
}

impl OutputSizeUser for Core {
    type OutputSize = U32;
}

impl HashMarker for Core {}
