//! The binary interface of a plugin library. The library exports one symbol. The symbol has a C
//! layout and contains the fingerprint of the library's build.
//!
//! The host first compares the fingerprint with its own. Only then does it read data with Rust's
//! unspecified layout.

use std::ffi::{CStr, c_char};
use std::mem::{align_of, offset_of, size_of};

use reprpo_fingerprint::FINGERPRINT;

use super::guest;
use super::host::Host;
use crate::api;
use crate::error::Error;
use crate::registry::{
    AdapterEntry, DatasetEntry, Entry, InterventionEntry, RecipeText, TapEntry, TransformEntry,
};

/// Name of the symbol, terminated by NUL.
pub(super) const SYMBOL: &[u8] = b"REPRPO_PLUGIN\0";
const MAGIC: [u8; 8] = *b"reprpo\x01\x00";
/// Version of the interface. Increase it after a change to [`PluginDecl`] or [`Host`].
const API: u32 = 2;

/// The value of the symbol `REPRPO_PLUGIN`, which [`export_plugin!`](crate::export_plugin) exports.
#[repr(C)]
pub struct PluginDecl {
    magic: [u8; 8],
    size: u32,
    api: u32,
    layout: u64,
    fingerprint: *const c_char,
    name: *const c_char,
    version: *const c_char,
    /// Registers all entries and recipes of the library with the host.
    pub(super) register: unsafe extern "C" fn(host: *const Host),
}

// SAFETY: the pointers point to constants, which are never written.
unsafe impl Sync for PluginDecl {}

impl std::fmt::Debug for PluginDecl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginDecl").field("api", &self.api).finish_non_exhaustive()
    }
}

impl PluginDecl {
    /// Creates the declaration of a crate with the given name and version. Called by
    /// [`export_plugin!`](crate::export_plugin).
    #[doc(hidden)]
    pub const fn new(name: &'static CStr, version: &'static CStr) -> Self {
        const TEXT: &CStr = match CStr::from_bytes_with_nul(concat_nul!(FINGERPRINT)) {
            Ok(text) => text,
            Err(_) => panic!("the fingerprint contains a NUL"),
        };
        Self {
            magic: MAGIC,
            size: size_of::<Self>() as u32,
            api: API,
            layout: LAYOUT,
            fingerprint: TEXT.as_ptr(),
            name: name.as_ptr(),
            version: version.as_ptr(),
            register: guest::register,
        }
    }

    /// Checks that the symbol was exported by [`export_plugin!`](crate::export_plugin) with this
    /// version of the interface. The other fields must not be read before this check.
    ///
    /// # Errors
    /// Fails if the magic number, the version or the size of the struct is not the expected one.
    pub(super) fn recognise(&self) -> Result<(), Error> {
        if self.magic != MAGIC {
            return Err(Error::new("its `REPRPO_PLUGIN` was not exported by `export_plugin!`"));
        }
        if self.api != API || self.size != size_of::<Self>() as u32 {
            return Err(Error::new(format!(
                "it uses version {} of the plugin interface, but this reprpo uses version {API}",
                self.api
            )));
        }
        Ok(())
    }

    /// The fingerprint of the library's build.
    ///
    /// # Safety
    /// [`recognise`](Self::recognise) must have succeeded.
    pub(super) unsafe fn fingerprint(&self) -> Fingerprint {
        // SAFETY: `new` created the pointers from constants that end in NUL.
        Fingerprint { text: unsafe { text(self.fingerprint) }, layout: self.layout }
    }

    /// Name and version of the library's crate.
    ///
    /// # Safety
    /// [`recognise`](Self::recognise) must have succeeded.
    pub(super) unsafe fn crate_name(&self) -> (String, String) {
        // SAFETY: `new` created the pointers from constants that end in NUL.
        unsafe { (text(self.name), text(self.version)) }
    }
}

unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: `pointer` points to a NUL-terminated constant of the library, which is never
    // unloaded.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// Appends a NUL to a constant `&str`. The result has the type `&[u8; N]`.
macro_rules! concat_nul {
    ($text:expr) => {{
        const WITHOUT: &str = $text;
        const WITH: [u8; WITHOUT.len() + 1] = {
            let mut bytes = [0; WITHOUT.len() + 1];
            let mut i = 0;
            while i < WITHOUT.len() {
                bytes[i] = WITHOUT.as_bytes()[i];
                i += 1;
            }
            bytes
        };
        &WITH
    }};
}
use concat_nul;

/// Identifies the build of a program or a plugin library. A library can only be loaded if its
/// fingerprint equals the program's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    text: String,
    layout: u64,
}

impl Fingerprint {
    /// The fingerprint of this program.
    pub fn ours() -> Self {
        Self { text: FINGERPRINT.to_owned(), layout: LAYOUT }
    }

    /// Names and values of the parts of the fingerprint: compiler, target, panic strategy, version
    /// and sources of the core, tch, libtorch, and memory layout.
    pub fn parts(&self) -> Vec<(String, String)> {
        let mut parts: Vec<_> = self
            .text
            .split(';')
            .filter_map(|part| part.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        parts.push(("layout".to_owned(), format!("{:016x}", self.layout)));
        parts
    }

    /// The parts that differ. Each is a tuple of the name, the value in `self` and the value in
    /// `other`.
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let theirs = other.parts();
        let value = |key: &str| {
            theirs
                .iter()
                .find(|(k, _)| k == key)
                .map_or_else(|| "unknown".to_owned(), |(_, v)| v.clone())
        };
        self.parts()
            .into_iter()
            .map(|(key, ours)| (key.clone(), ours, value(&key)))
            .filter(|(_, ours, theirs)| ours != theirs)
            .collect()
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> =
            self.parts().into_iter().map(|(key, value)| format!("{key} {value}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// A hash of the sizes, alignments and field offsets of types that are passed between a plugin and
/// its host. It detects compiler flags that change the layout. All other changes to the layout also
/// change the compiler version or the digest of the sources.
const LAYOUT: u64 = {
    macro_rules! sizes {
        ($($t:ty),* $(,)?) => { &[$(size_of::<$t>(), align_of::<$t>()),*] };
    }
    let sizes: &[usize] = sizes![
        Entry,
        RecipeText,
        Error,
        Result<(), Error>,
        api::Site,
        api::LinearInfo,
        api::ModelInfo,
        api::Needs,
        api::Sides,
        api::TokenStates,
        api::TapStates,
        api::SequenceNll,
        api::TokenLogprobs,
        api::Logprobs,
        api::Pairs,
        api::Counted,
        api::Partial,
        api::StepInfo,
        api::Loss,
        api::OutputGrad,
        api::ParameterGrad<'static>,
        api::GradMap,
        api::Frozen,
        api::LinearSite<'static>,
        api::AdapterSource,
        api::PartInfo,
        api::AdaptedPart<'static>,
        api::FusedSite<'static>,
        api::Fused,
        api::PromptPlaces,
        api::Parameter,
        api::Targets,
        api::Selection,
        api::PeftFile<'static>,
        api::Init,
        api::Around,
        api::TransformCx<'static>,
        api::Pooling,
        api::PreferencePair,
        api::Message,
        api::TemplateArgs,
        serde_json::Value,
        serde_json::Number,
        api::SplitInfo,
        tch::Tensor,
        tch::Kind,
        tch::Device,
        Box<dyn api::Intervention>,
        Option<Result<api::PreferencePair, Error>>,
    ];
    let offsets = [
        offset_of!(InterventionEntry, about),
        offset_of!(AdapterEntry, about),
        offset_of!(AdapterEntry, peft_type),
        offset_of!(TransformEntry, about),
        offset_of!(TapEntry, about),
        offset_of!(DatasetEntry, about),
        offset_of!(DatasetEntry, argument),
        offset_of!(api::ModelInfo, linears),
        offset_of!(api::ModelInfo, vocab),
        offset_of!(api::LinearInfo, layer),
        offset_of!(api::PartInfo, rows),
        offset_of!(api::Needs, states),
        offset_of!(api::Needs, output_grads),
        offset_of!(api::Pairs, len),
        offset_of!(api::Pairs, taps),
        offset_of!(api::TapStates, site),
        offset_of!(api::TokenLogprobs, tokens),
        offset_of!(api::Loss, metrics),
        offset_of!(api::OutputGrad, owner),
        offset_of!(api::Parameter, axis),
        offset_of!(api::TransformCx<'static>, width),
        offset_of!(api::PreferencePair, chosen),
    ];
    // FNV-1a, applied to whole numbers instead of bytes.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < sizes.len() + offsets.len() {
        let number = if i < sizes.len() { sizes[i] } else { offsets[i - sizes.len()] };
        hash = (hash ^ number as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
};

/// Exports the plugins of this crate and of its linked plugin crates. `reprpo --plugin` can then
/// load the library.
///
/// Invoke the macro once, in the crate of type `cdylib`, and put the invocation behind a feature. A
/// program that links several plugin crates must not export the symbol more than once, and can then
/// disable the feature.
#[macro_export]
macro_rules! export_plugin {
    () => {
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub static REPRPO_PLUGIN: $crate::plugin::PluginDecl = {
            const fn terminated(text: &'static str) -> &'static ::core::ffi::CStr {
                match ::core::ffi::CStr::from_bytes_with_nul(text.as_bytes()) {
                    Ok(text) => text,
                    Err(_) => panic!("the name or version of the crate contains a NUL"),
                }
            }
            $crate::plugin::PluginDecl::new(
                terminated(concat!(env!("CARGO_PKG_NAME"), "\0")),
                terminated(concat!(env!("CARGO_PKG_VERSION"), "\0")),
            )
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_has_all_parts() {
        let parts = Fingerprint::ours().parts();
        let names: Vec<&str> = parts.iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(
            names,
            ["rustc", "target", "panic", "core", "sources", "tch", "libtorch", "layout"]
        );
        assert!(parts.iter().all(|(_, v)| !v.is_empty() && !v.contains("(unknown")), "{parts:?}");
    }

    #[test]
    fn the_tch_version_is_the_pinned_one() {
        let workspace = include_str!("../../../Cargo.toml");
        assert!(workspace.contains(&format!("tch = \"={}\"", reprpo_fingerprint::TCH_VERSION)));
    }

    #[test]
    fn differences_have_the_values_of_both_sides() {
        let ours = Fingerprint::ours();
        assert_eq!(ours.differences(&ours), []);
        let theirs = Fingerprint { text: ours.text.replace("tch=0.24.0", "tch=0.22.0"), layout: 1 };
        let differences = ours.differences(&theirs);
        assert_eq!(differences[0], ("tch".to_owned(), "0.24.0".to_owned(), "0.22.0".to_owned()));
        assert_eq!(differences[1].0, "layout");
    }

    #[test]
    fn a_symbol_with_another_magic_number_or_version_is_an_error() {
        let decl = PluginDecl::new(c"x", c"1");
        assert!(decl.recognise().is_ok());
        assert!(PluginDecl { magic: [0; 8], ..PluginDecl::new(c"x", c"1") }.recognise().is_err());
        let e = PluginDecl { api: 9, ..decl }.recognise().unwrap_err();
        assert!(e.message().contains("version 9"), "{e}");
    }
}
