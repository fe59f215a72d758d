//! Writes GGUF files for tests, including invalid ones.

/// A builder of GGUF files. It does not validate anything, so that tests can create invalid files.
#[derive(Clone)]
pub struct Writer {
    pub version: u32,
    /// Prefix of the architecture-specific keys, e.g. `llama`.
    pub architecture: &'static str,
    pub entries: Vec<Vec<u8>>,
    /// Name, shape, ggml type number and data of each tensor. As in GGUF, the innermost dimension
    /// of a shape comes first.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

/// Encodes a string.
pub fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

impl Writer {
    /// A Llama model with the required settings and an embedding of two tokens.
    pub fn llama() -> Self {
        Self::of("llama")
    }

    /// Like [`llama`](Self::llama), but with a different architecture.
    pub fn of(architecture: &'static str) -> Self {
        let w = Self { version: 3, architecture, entries: Vec::new(), tensors: Vec::new() };
        let w = w
            .entry("general.architecture", 8, &text(architecture))
            .count("embedding_length", 32)
            .count("feed_forward_length", 64);
        let w = w
            .count("block_count", 1)
            .count("attention.head_count", 2)
            .count("attention.head_count_kv", 1)
            .count("context_length", 128);
        w.float("attention.layer_norm_rms_epsilon", 1e-6).tensor(
            "token_embd.weight",
            &[32, 2],
            0,
            &[0; 256],
        )
    }

    /// Adds a setting. `kind` is the GGUF type number of the value. `value` is already encoded.
    pub fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    /// Adds an architecture-specific integer setting.
    pub fn count(self, key: &str, value: u32) -> Self {
        let key = format!("{}.{key}", self.architecture);
        self.entry(&key, 4, &value.to_le_bytes())
    }

    /// Adds an architecture-specific float setting.
    pub fn float(self, key: &str, value: f32) -> Self {
        let key = format!("{}.{key}", self.architecture);
        self.entry(&key, 6, &value.to_le_bytes())
    }

    /// Adds a float32 tensor.
    pub fn floats(self, name: &str, axes: &[u64], values: impl IntoIterator<Item = f32>) -> Self {
        self.tensor(
            name,
            axes,
            0,
            &values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>(),
        )
    }

    pub fn tensor(mut self, name: &str, axes: &[u64], kind: u32, data: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), axes.to_vec(), kind, data.to_vec()));
        self
    }

    /// Encodes the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        out.extend(self.entries.concat());
        let mut data = Vec::new();
        for (name, axes, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((axes.len() as u32).to_le_bytes());
            out.extend(axes.iter().flat_map(|a| a.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    /// Encodes a file that contains only the given settings.
    pub fn with_settings(entries: Vec<Vec<u8>>) -> Vec<u8> {
        Self { version: 3, architecture: "", entries, tensors: Vec::new() }.bytes()
    }
}

/// Encodes an array of strings.
pub fn texts<S: AsRef<str>>(all: &[S]) -> Vec<u8> {
    let items: Vec<u8> = all.iter().flat_map(|s| text(s.as_ref())).collect();
    [&8u32.to_le_bytes()[..], &(all.len() as u64).to_le_bytes(), &items].concat()
}

/// Encodes an array of four-byte numbers. `kind` is the GGUF type number: 5 for i32, 6 for f32.
pub fn numbers(kind: u32, all: impl ExactSizeIterator<Item = [u8; 4]>) -> Vec<u8> {
    let len = all.len() as u64;
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), &all.flatten().collect::<Vec<u8>>()].concat()
}
