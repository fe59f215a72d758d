//! The weights of the tiny models. They are computed here and in `make.py`, so they do not need to
//! be stored.

/// The values of the tensor `name`: uniform numbers from splitmix64, seeded with the FNV-1a hash of
/// the name. They are centred on 0, or on 1 for norm weights.
pub fn numbers(name: &str, shape: &[i64]) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let one = if shape.len() == 1 && name.ends_with("norm.weight") { 1.0 } else { 0.0 };
    let number = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        ((z >> 11) as f64 / (1u64 << 53) as f64 - 0.5 + one) as f32
    };
    (1..=shape.iter().product::<i64>() as u64).map(number).collect()
}
