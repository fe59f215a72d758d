//! Decodes blocks of ggml's number types. The operations are in the same order as in Python's
//! `gguf` package, so that the results are bit-for-bit equal.
//!
//! The comment of each function lists the fields of a block in order, and gives the formula for a
//! number y. In the formulas, q is the stored integer; d, dmin and m are half-precision scales and
//! offsets.

use half::f16;

/// Calls `one` to decode each block of `B` bytes in `src` into `N` numbers in `dst`.
pub(super) fn each<const B: usize, const N: usize>(
    src: &[u8],
    dst: &mut [f32],
    one: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (b, y) in src.as_chunks::<B>().0.iter().zip(dst.as_chunks_mut::<N>().0) {
        one(b, y);
    }
}

fn f16_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Layout: d, then 16 bytes. The low 4 bits of these bytes are the first 16 numbers, and the high 4
/// bits are the last 16 numbers.
///
/// y = (q − 8)·d
pub(super) fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        y[j] = (i32::from(q & 15) - 8) as f32 * d;
        y[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

/// Layout: d, m, then 16 bytes as in Q4_0.
///
/// y = q·d + m
pub(super) fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for j in 0..16 {
        let q = b[4 + j];
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// Returns the 5-bit numbers `j` and `j + 16` of a block. The two halves of `low` are the lower
/// four bits of the two numbers. Bit i of `high` is the fifth bit of number i.
fn five_bits(low: u8, high: u32, j: usize) -> (i32, i32) {
    let a = u32::from(low & 15) | (high >> j & 1) << 4;
    let b = u32::from(low >> 4) | (high >> (j + 16) & 1) << 4;
    (a as i32, b as i32)
}

/// Layout: d, then the fifth bits of the 32 numbers, then 16 bytes with the other bits, as in Q4_0.
///
/// y = (q − 16)·d
pub(super) fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for j in 0..16 {
        let (p, q) = five_bits(b[6 + j], high, j);
        y[j] = (p - 16) as f32 * d;
        y[j + 16] = (q - 16) as f32 * d;
    }
}

/// Layout: d, m, then the fifth bits of the 32 numbers, then 16 bytes with the other bits, as in
/// Q4_0.
///
/// y = q·d + m
pub(super) fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for j in 0..16 {
        let (p, q) = five_bits(b[8 + j], high, j);
        y[j] = p as f32 * d + m;
        y[j + 16] = q as f32 * d + m;
    }
}

/// Layout: d, then 32 signed bytes.
///
/// y = q·d
pub(super) fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..32 {
        y[j] = f32::from(b[2 + j] as i8) * d;
    }
}

/// Layout: 16 bytes, each with a 4-bit scale (low half) and a 4-bit minimum (high half), then 64
/// bytes, each with four 2-bit numbers, then d and dmin.
///
/// y = (d·scale)·q − dmin·min
pub(super) fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
    for group in 0..16 {
        let (scale, min) = (d * f32::from(b[group] & 15), dmin * f32::from(b[group] >> 4));
        for j in 0..16 {
            let q = b[16 + group / 8 * 32 + group % 2 * 16 + j] >> (group % 8 / 2 * 2) & 3;
            y[group * 16 + j] = scale * f32::from(q) - min;
        }
    }
}

/// Layout: 32 bytes with the third bit of each number, then 64 bytes, each with the lower two bits
/// of four numbers, then 12 bytes with sixteen 6-bit scales, then d. In the formula, q is the lower
/// two bits, and `unset` is 1 if the third bit is 0, else 0.
///
/// y = (d·(scale − 32))·(q − 4·unset)
pub(super) fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = f16_at(b, 108);
    for group in 0..16 {
        let low = b[96 + group % 8] >> (group / 8 * 4) & 15;
        let high = b[104 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (i32::from(low | high << 4) - 32) as f32;
        for j in 0..16 {
            let within = group % 2 * 16 + j;
            let q = b[32 + group / 8 * 32 + within] >> (group % 8 / 2 * 2) & 3;
            let unset = 1 - (b[within] >> (group / 2) & 1);
            y[group * 16 + j] = scale * (i32::from(q) - 4 * i32::from(unset)) as f32;
        }
    }
}

/// Returns the 6-bit scale and minimum of one of the eight groups of a Q4_K or Q5_K block. The 12
/// bytes `s` contain the scales and minima of all groups.
fn scale_and_min(s: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (s[group] & 63, s[group + 4] & 63)
    } else {
        (s[group + 4] & 15 | (s[group - 4] >> 6) << 4, s[group + 4] >> 4 | (s[group] >> 6) << 4)
    };
    (scale.into(), min.into())
}

/// Layout: d, dmin, then 12 bytes with eight 6-bit scales and eight 6-bit minima, then 128 bytes,
/// each with two 4-bit numbers.
///
/// y = (d·scale)·q − dmin·min
pub(super) fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    for group in 0..8 {
        let (scale, min) = scale_and_min(&b[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        for j in 0..32 {
            let q = b[16 + group / 2 * 32 + j];
            let q = if group % 2 == 0 { q & 15 } else { q >> 4 };
            y[group * 32 + j] = scale * f32::from(q) - min;
        }
    }
}

/// Layout: as in Q4_K, but the 4-bit numbers are preceded by 32 bytes with the fifth bits.
///
/// y = (d·scale)·q − dmin·min
pub(super) fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    for group in 0..8 {
        let (scale, min) = scale_and_min(&b[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        for j in 0..32 {
            let q = b[48 + group / 2 * 32 + j];
            let q = if group % 2 == 0 { q & 15 } else { q >> 4 };
            y[group * 32 + j] = scale * f32::from(q | (b[16 + j] >> group & 1) << 4) - min;
        }
    }
}

/// Layout: 128 bytes, each with the lower four bits of two numbers, then 64 bytes, each with the
/// upper two bits of four numbers, then 16 signed scales, then d.
///
/// y = (d·scale)·(q − 32)
pub(super) fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = f16_at(b, 208);
    for half in 0..2 {
        for quarter in 0..4 {
            for j in 0..32 {
                let low = b[half * 64 + quarter % 2 * 32 + j];
                let low = if quarter < 2 { low & 15 } else { low >> 4 };
                let high = b[128 + half * 32 + j] >> (2 * quarter) & 3;
                let scale = b[192 + half * 8 + quarter * 2 + j / 16] as i8;
                y[half * 128 + quarter * 32 + j] =
                    d * f32::from(scale) * (i32::from(low | high << 4) - 32) as f32;
            }
        }
    }
}
