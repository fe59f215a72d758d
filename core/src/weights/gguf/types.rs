//! The number types of GGUF tensors: block sizes and how a block becomes numbers, as ggml lays them out.

use half::{bf16, f16};

/// A type of numbers: `block` of them are stored together in `bytes` bytes.
#[derive(Debug)]
pub struct Format {
    /// ggml's name, `Q4_1`.
    pub name: &'static str,
    /// ggml's number, as the file has it.
    pub id: u32,
    /// How many numbers a block holds.
    pub block: usize,
    /// How many bytes a block takes.
    pub bytes: usize,
    /// Turns whole blocks into numbers; the slices fit each other.
    pub decode: fn(&[u8], &mut [f32]),
}

/// The types that are read.
pub static FORMATS: [Format; 10] = [
    Format { name: "F32", id: 0, block: 1, bytes: 4, decode: |s, d| each(s, d, |b: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)) },
    Format { name: "F16", id: 1, block: 1, bytes: 2, decode: |s, d| each(s, d, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = f16::from_le_bytes(*b).to_f32()) },
    Format { name: "BF16", id: 30, block: 1, bytes: 2, decode: |s, d| each(s, d, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = bf16::from_le_bytes(*b).to_f32()) },
    Format { name: "Q4_0", id: 2, block: 32, bytes: 18, decode: |s, d| each(s, d, q4_0) },
    Format { name: "Q4_1", id: 3, block: 32, bytes: 20, decode: |s, d| each(s, d, q4_1) },
    Format { name: "Q5_0", id: 6, block: 32, bytes: 22, decode: |s, d| each(s, d, q5_0) },
    Format { name: "Q5_1", id: 7, block: 32, bytes: 24, decode: |s, d| each(s, d, q5_1) },
    Format { name: "Q8_0", id: 8, block: 32, bytes: 34, decode: |s, d| each(s, d, q8_0) },
    Format { name: "Q4_K", id: 12, block: 256, bytes: 144, decode: |s, d| each(s, d, q4_k) },
    Format { name: "Q6_K", id: 14, block: 256, bytes: 210, decode: |s, d| each(s, d, q6_k) },
];

/// The type with ggml's number `id`, where it is read.
pub fn format(id: u32) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.id == id)
}

/// ggml's name of a type that is not read.
pub fn unread_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    name.to_owned()
}

/// The names of the types that are read.
pub fn read_names() -> String {
    FORMATS.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}

fn each<const B: usize, const N: usize>(src: &[u8], dst: &mut [f32], one: impl Fn(&[u8; B], &mut [f32; N])) {
    for (b, y) in src.as_chunks::<B>().0.iter().zip(dst.as_chunks_mut::<N>().0) {
        one(b, y);
    }
}

fn f16_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// d, 16 bytes of two 4-bit numbers: low halves first, then high halves. y = (q − 8)·d
fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        y[j] = (i32::from(q & 15) - 8) as f32 * d;
        y[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

/// d, m, 16 bytes as in Q4_0. y = q·d + m
fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for j in 0..16 {
        let q = b[4 + j];
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// Number `j` and number `j + 16` of 32 whose fifth bits are the bits of `high`.
fn five_bits(low: u8, high: u32, j: usize) -> (i32, i32) {
    let a = u32::from(low & 15) | (high >> j & 1) << 4;
    let b = u32::from(low >> 4) | (high >> (j + 16) & 1) << 4;
    (a as i32, b as i32)
}

/// d, 32 fifth bits, 16 bytes as in Q4_0. y = (q − 16)·d
fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for j in 0..16 {
        let (p, q) = five_bits(b[6 + j], high, j);
        y[j] = (p - 16) as f32 * d;
        y[j + 16] = (q - 16) as f32 * d;
    }
}

/// d, m, 32 fifth bits, 16 bytes as in Q4_0. y = q·d + m
fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for j in 0..16 {
        let (p, q) = five_bits(b[8 + j], high, j);
        y[j] = p as f32 * d + m;
        y[j + 16] = q as f32 * d + m;
    }
}

/// d, 32 signed bytes. y = q·d
fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..32 {
        y[j] = f32::from(b[2 + j] as i8) * d;
    }
}

/// d, dmin, eight 6-bit scales and minima in 12 bytes, 128 bytes of two 4-bit numbers. y = q·(d·scale) − dmin·min
fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let s = &b[4..16];
    for group in 0..8 {
        let (scale, min) = if group < 4 {
            (s[group] & 63, s[group + 4] & 63)
        } else {
            (s[group + 4] & 15 | (s[group - 4] >> 6) << 4, s[group + 4] >> 4 | (s[group] >> 6) << 4)
        };
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for j in 0..32 {
            let q = b[16 + group / 2 * 32 + j];
            let q = if group % 2 == 0 { q & 15 } else { q >> 4 };
            y[group * 32 + j] = scale * f32::from(q) - min;
        }
    }
}

/// 128 bytes of low halves, 64 bytes of upper two bits, 16 signed scales, d. y = (d·scale)·(q − 32)
fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = f16_at(b, 208);
    for half in 0..2 {
        for quarter in 0..4 {
            for j in 0..32 {
                let low = b[half * 64 + quarter % 2 * 32 + j];
                let low = if quarter < 2 { low & 15 } else { low >> 4 };
                let high = b[128 + half * 32 + j] >> (2 * quarter) & 3;
                let scale = b[192 + half * 8 + quarter * 2 + j / 16] as i8;
                y[half * 128 + quarter * 32 + j] = d * f32::from(scale) * (i32::from(low | high << 4) - 32) as f32;
            }
        }
    }
}
