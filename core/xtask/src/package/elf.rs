//! Reads the dynamic linking information of an ELF file: the shared libraries that it needs, the
//! required symbol versions, and the library search path.

use anyhow::{Context, Result, bail};
use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, Sym};
use object::read::{StringTable, SymbolIndex};

/// The contents of the dynamic section of an ELF file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Names of the needed libraries (`DT_NEEDED`).
    pub needed: Vec<String>,
    /// Folders in which the loader looks for libraries (`DT_RUNPATH`), separated by `:`.
    pub runpath: Option<String>,
    /// An older form of RUNPATH (`DT_RPATH`), which takes precedence over `LD_LIBRARY_PATH`.
    pub rpath: Option<String>,
    /// Required symbol versions, in file order.
    pub required: Vec<Required>,
}

/// A symbol version that a library must define, such as `GLIBC_2.28` in `libc.so.6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Required {
    pub library: String,
    pub version: String,
    /// The symbols that the ELF file needs in this version.
    pub symbols: Vec<String>,
}

impl Dynamic {
    /// Reads the dynamic section of a 64-bit ELF file.
    ///
    /// # Errors
    /// Fails if `data` is not a 64-bit ELF file, or if it has no dynamic section.
    pub fn read(data: &[u8]) -> Result<Self> {
        let header = FileHeader64::<Endianness>::parse(data).context("not a 64-bit ELF file")?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let Some((entries, strings)) = sections.dynamic(endian, data)? else {
            bail!("the ELF file has no dynamic section")
        };
        let strings = sections.strings(endian, data, strings)?;

        let mut dynamic = Self::default();
        for entry in entries {
            let text = || {
                Ok::<_, object::Error>(
                    String::from_utf8_lossy(entry.string(endian, strings)?).into_owned(),
                )
            };
            match entry.tag(endian) {
                elf::DT_NEEDED => dynamic.needed.push(text()?),
                elf::DT_RUNPATH => dynamic.runpath = Some(text()?),
                elf::DT_RPATH => dynamic.rpath = Some(text()?),
                _ => {}
            }
        }

        let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
        let Some(versions) = sections.versions(endian, data)? else { return Ok(dynamic) };
        let Some((mut libraries, strings)) = sections.gnu_verneed(endian, data)? else {
            return Ok(dynamic);
        };
        let strings: StringTable = sections.strings(endian, data, strings)?;
        while let Some((library, mut needs)) = libraries.next()? {
            let library = String::from_utf8_lossy(library.file(endian, strings)?).into_owned();
            while let Some(need) = needs.next()? {
                let index = need.vna_other.get(endian);
                let mut users = Vec::new();
                for (at, symbol) in symbols.iter().enumerate() {
                    if versions.version_index(endian, SymbolIndex(at)).index() == index {
                        users.push(
                            String::from_utf8_lossy(symbol.name(endian, symbols.strings())?)
                                .into_owned(),
                        );
                    }
                }
                let version = String::from_utf8_lossy(need.name(endian, strings)?).into_owned();
                dynamic.required.push(Required {
                    library: library.clone(),
                    version,
                    symbols: users,
                });
            }
        }
        Ok(dynamic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_section_of_the_test_binary_is_read() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        if !this.starts_with(b"\x7fELF") {
            return;
        }
        let dynamic = Dynamic::read(&this).unwrap();
        assert!(dynamic.needed.iter().any(|name| name == "libc.so.6"), "{:?}", dynamic.needed);
        let of_libc = |required: &&Required| {
            required.library == "libc.so.6" && required.version.starts_with("GLIBC_2.")
        };
        let symbols: Vec<&String> = dynamic
            .required
            .iter()
            .filter(of_libc)
            .flat_map(|required| &required.symbols)
            .collect();
        assert!(symbols.iter().any(|name| *name == "malloc"), "{symbols:?}");
    }

    #[test]
    fn a_file_of_another_format_is_an_error() {
        assert!(Dynamic::read(b"#!/bin/sh\n").is_err());
    }
}
