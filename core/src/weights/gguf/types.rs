//! The data types of GGUF tensors: their names, block sizes and decoders.

use half::{bf16, f16};
use tch::Kind;

use super::blocks::{each, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};

/// A data type. Numbers are stored in blocks of a fixed size.
#[derive(Debug)]
pub struct Format {
    /// Name in ggml, such as `Q4_1`.
    pub name: &'static str,
    /// Id in ggml and in files.
    pub id: u32,
    /// Number of elements per block.
    pub block: usize,
    /// Size of a block in bytes.
    pub bytes: usize,
    /// Decodes blocks. The output must have one element for each number in the input.
    pub decode: fn(&[u8], &mut [f32]),
}

/// The supported types.
pub static FORMATS: [Format; 13] = [
    Format {
        name: "F32",
        id: 0,
        block: 1,
        bytes: 4,
        decode: |s, d| each(s, d, |b: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)),
    },
    Format {
        name: "F16",
        id: 1,
        block: 1,
        bytes: 2,
        decode: |s, d| {
            each(s, d, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = f16::from_le_bytes(*b).to_f32())
        },
    },
    Format {
        name: "BF16",
        id: 30,
        block: 1,
        bytes: 2,
        decode: |s, d| {
            each(s, d, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = bf16::from_le_bytes(*b).to_f32())
        },
    },
    Format { name: "Q4_0", id: 2, block: 32, bytes: 18, decode: |s, d| each(s, d, q4_0) },
    Format { name: "Q4_1", id: 3, block: 32, bytes: 20, decode: |s, d| each(s, d, q4_1) },
    Format { name: "Q5_0", id: 6, block: 32, bytes: 22, decode: |s, d| each(s, d, q5_0) },
    Format { name: "Q5_1", id: 7, block: 32, bytes: 24, decode: |s, d| each(s, d, q5_1) },
    Format { name: "Q8_0", id: 8, block: 32, bytes: 34, decode: |s, d| each(s, d, q8_0) },
    Format { name: "Q2_K", id: 10, block: 256, bytes: 84, decode: |s, d| each(s, d, q2_k) },
    Format { name: "Q3_K", id: 11, block: 256, bytes: 110, decode: |s, d| each(s, d, q3_k) },
    Format { name: "Q4_K", id: 12, block: 256, bytes: 144, decode: |s, d| each(s, d, q4_k) },
    Format { name: "Q5_K", id: 13, block: 256, bytes: 176, decode: |s, d| each(s, d, q5_k) },
    Format { name: "Q6_K", id: 14, block: 256, bytes: 210, decode: |s, d| each(s, d, q6_k) },
];

/// Returns the supported type with the given ggml id.
pub fn format(id: u32) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.id == id)
}

/// Returns the unquantised type for tensors of dtype `kind`, if GGUF has one.
pub fn plain(kind: Kind) -> Option<&'static Format> {
    let name = match kind {
        Kind::Float => "F32",
        Kind::Half => "F16",
        Kind::BFloat16 => "BF16",
        _ => return None,
    };
    FORMATS.iter().find(|f| f.name == name)
}

/// Returns ggml's name of an unsupported type, or its id if there is no known name.
pub fn unread_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
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

/// Lists the names of all supported types.
pub fn read_names() -> String {
    FORMATS.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}
