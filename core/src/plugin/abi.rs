//! The interface of a plugin's library: one symbol, in C's layout alone, and what it is compared
//! by.
//!
//! Nothing of Rust's own layout is read before both sides have shown that they are of one build.

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

/// The symbol's name, NUL-terminated.
pub(super) const SYMBOL: &[u8] = b"REPRPO_PLUGIN\0";
const MAGIC: [u8; 8] = *b"reprpo\x01\x00";
/// Counts changes of the two structs below.
const API: u32 = 2;

/// What a plugin's library exports as `REPRPO_PLUGIN`. Made by
/// [`export_plugin!`](crate::export_plugin).
#[repr(C)]
pub struct PluginDecl {
    magic: [u8; 8],
    size: u32,
    api: u32,
    layout: u64,
    fingerprint: *const c_char,
    name: *const c_char,
    version: *const c_char,
    /// Hands every entry and recipe of the library to the host.
    pub(super) register: unsafe extern "C" fn(host: *const Host),
}

// SAFETY: its pointers are to constants.
unsafe impl Sync for PluginDecl {}

impl std::fmt::Debug for PluginDecl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginDecl").field("api", &self.api).finish_non_exhaustive()
    }
}

impl PluginDecl {
    /// Of the crate `name` `version`; both end in NUL. Called by
    /// [`export_plugin!`](crate::export_plugin).
    #[doc(hidden)]
    pub const fn new(name: &'static CStr, version: &'static CStr) -> Self {
        const TEXT: &CStr = match CStr::from_bytes_with_nul(concat_nul!(FINGERPRINT)) {
            Ok(text) => text,
            Err(_) => panic!("the fingerprint holds no NUL"),
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

    /// Whether the symbol is one of ours, and of this version of the interface. Only then is
    /// anything else of it read.
    pub(super) fn recognise(&self) -> Result<(), Error> {
        if self.magic != MAGIC {
            return Err(Error::new("its `REPRPO_PLUGIN` is not what `export_plugin!` makes"));
        }
        if self.api != API || self.size != size_of::<Self>() as u32 {
            return Err(Error::new(format!(
                "it is built for version {} of the plugin interface, and this reprpo has version \
                    {API}",
                self.api
            )));
        }
        Ok(())
    }

    /// The build that it is of.
    ///
    /// # Safety
    /// [`recognise`](Self::recognise) has found it to be ours.
    pub(super) unsafe fn fingerprint(&self) -> Fingerprint {
        // SAFETY: made by `new`.
        Fingerprint { text: unsafe { text(self.fingerprint) }, layout: self.layout }
    }

    /// The crate's name and version.
    ///
    /// # Safety
    /// [`recognise`](Self::recognise) has found it to be ours.
    pub(super) unsafe fn crate_name(&self) -> (String, String) {
        // SAFETY: made by `new`.
        unsafe { (text(self.name), text(self.version)) }
    }
}

unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: a NUL-terminated constant of the library, which is never unloaded.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// `$text` with a NUL behind it, as bytes.
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

/// Which build a program or a plugin is of. They fit where these are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    text: String,
    layout: u64,
}

impl Fingerprint {
    /// Of this program.
    pub fn ours() -> Self {
        Self { text: FINGERPRINT.to_owned(), layout: LAYOUT }
    }

    /// Its parts by name: compiler, target, core, its sources, tch, libtorch, layout.
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

    /// The parts in which `other` differs: name, this one's, the other's.
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

/// Sizes, alignments and places of fields of what crosses the boundary. The compiler's version and
/// the sources settle them but for flags that change layout, which this one shows.
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
        api::GradMap,
        api::Frozen,
        api::LinearSite<'static>,
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
    // FNV-1a over the numbers.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < sizes.len() + offsets.len() {
        let number = if i < sizes.len() { sizes[i] } else { offsets[i - sizes.len()] };
        hash = (hash ^ number as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
};

/// Exports what this crate and the plugin crates that it names have registered as a library that
/// `reprpo --plugin` loads.
///
/// It stands once in a library, in the crate of type `cdylib`. Where several plugin crates are
/// linked into one program, none of them may export: keep it behind a feature that such a program
/// leaves off.
#[macro_export]
macro_rules! export_plugin {
    () => {
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub static REPRPO_PLUGIN: $crate::plugin::PluginDecl = {
            const fn terminated(text: &'static str) -> &'static ::core::ffi::CStr {
                match ::core::ffi::CStr::from_bytes_with_nul(text.as_bytes()) {
                    Ok(text) => text,
                    Err(_) => panic!("a name of a crate holds no NUL"),
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
    fn the_fingerprint_names_what_the_interface_depends_on() {
        let parts = Fingerprint::ours().parts();
        let names: Vec<&str> = parts.iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(
            names,
            ["rustc", "target", "panic", "core", "sources", "tch", "libtorch", "layout"]
        );
        assert!(parts.iter().all(|(_, v)| !v.is_empty() && !v.contains("(unknown")), "{parts:?}");
    }

    #[test]
    fn the_tch_that_is_named_is_the_one_that_is_pinned() {
        let workspace = include_str!("../../../Cargo.toml");
        assert!(workspace.contains(&format!("tch = \"={}\"", reprpo_fingerprint::TCH_VERSION)));
    }

    #[test]
    fn a_difference_names_both_sides() {
        let ours = Fingerprint::ours();
        assert_eq!(ours.differences(&ours), []);
        let theirs = Fingerprint { text: ours.text.replace("tch=0.24.0", "tch=0.22.0"), layout: 1 };
        let differences = ours.differences(&theirs);
        assert_eq!(differences[0], ("tch".to_owned(), "0.24.0".to_owned(), "0.22.0".to_owned()));
        assert_eq!(differences[1].0, "layout");
    }

    #[test]
    fn a_foreign_symbol_is_not_read_further() {
        let decl = PluginDecl::new(c"x", c"1");
        assert!(decl.recognise().is_ok());
        assert!(PluginDecl { magic: [0; 8], ..PluginDecl::new(c"x", c"1") }.recognise().is_err());
        let e = PluginDecl { api: 9, ..decl }.recognise().unwrap_err();
        assert!(e.message().contains("version 9"), "{e}");
    }
}
