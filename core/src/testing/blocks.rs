//! Random matrices in the types of GGUF files.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::weights::Format;

/// Pseudorandom blocks of `count` numbers of the type `format`. The numbers have moderate sizes.
pub fn random_blocks(format: &Format, count: usize, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let scales: &[usize] = match format.name {
        "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => &[0, 2],
        "Q2_K" => &[80, 82],
        "Q3_K" => &[108],
        "Q6_K" => &[208],
        _ => &[0],
    };
    let scale = if format.block == 256 { 2e-4 } else { 0.02 };
    let mut number = |around: f32| around * random.random_range(0.5f32..1.5);
    match format.name {
        "F32" => (0..count).flat_map(|_| (number(0.1) - 0.1).to_le_bytes()).collect(),
        "F16" => (0..count).flat_map(|_| f16::from_f32(number(0.1) - 0.1).to_le_bytes()).collect(),
        "BF16" => {
            (0..count).flat_map(|_| bf16::from_f32(number(0.1) - 0.1).to_le_bytes()).collect()
        }
        _ => {
            let heads: Vec<[u8; 2]> = (0..count / format.block * scales.len())
                .map(|_| f16::from_f32(number(scale)).to_le_bytes())
                .collect();
            let mut bytes = vec![0; count / format.block * format.bytes];
            random.fill(&mut bytes[..]);
            for (block, heads) in bytes.chunks_mut(format.bytes).zip(heads.chunks(scales.len())) {
                for (at, head) in scales.iter().zip(heads) {
                    block[*at..at + 2].copy_from_slice(head);
                }
            }
            bytes
        }
    }
}
