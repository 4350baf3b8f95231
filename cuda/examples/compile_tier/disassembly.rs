//! Counting instructions with nvdisasm.

use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tritter_cuda::nvrtc::Nvrtc;

/// The tool.
pub(crate) struct Disassembler(PathBuf);

/// Instructions of one entry point that say how well it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All.
    pub(crate) all: u32,
    /// 16-byte loads from global memory to registers.
    pub(crate) loads: u32,
    /// 16-byte copies from global to shared memory.
    pub(crate) copies: u32,
    /// Tensor-core instructions.
    pub(crate) tensor: u32,
    /// Loads and stores of local memory.
    pub(crate) local: u32,
}

impl Disassembler {
    /// `TRITTER_NVDISASM`, or one on the path, or in the wheels beside NVRTC's.
    pub(crate) fn find(nvrtc: &Nvrtc) -> Option<Disassembler> {
        if let Some(named) = std::env::var_os("TRITTER_NVDISASM").filter(|path| !path.is_empty()) {
            return Some(Disassembler(named.into()));
        }
        let name = format!("nvdisasm{}", std::env::consts::EXE_SUFFIX);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|folder| folder.join(&name));
        // nvidia/cuda_nvrtc/lib/libnvrtc.so.12 and nvidia/cu13/bin/nvdisasm
        let wheels = nvrtc.path().ancestors().nth(3).map(|nvidia| nvidia.join("cu13").join("bin").join(&name));
        on_path.chain(wheels).find(|tool| tool.is_file()).map(Disassembler)
    }

    /// Counts of every entry point of a cubin.
    pub(crate) fn count(&self, cubin: &[u8]) -> Result<BTreeMap<String, Counts>> {
        let mut file = tempfile::Builder::new().suffix(".cubin").tempfile()?;
        file.write_all(cubin)?;
        Ok(count(&self.run(file.path())?))
    }

    fn run(&self, cubin: &Path) -> Result<String> {
        let output = Command::new(&self.0).arg("-c").arg(cubin).output();
        let output = output.with_context(|| format!("{} does not start", self.0.display()))?;
        if !output.status.success() {
            bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl fmt::Display for Disassembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nvdisasm at {}", self.0.display())
    }
}

/// Counts by the sections of the code: `.text.<entry>`.
fn count(text: &str) -> BTreeMap<String, Counts> {
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let mut section = None;
    for line in text.lines() {
        // `.sectionflags` and `.sectioninfo` follow it.
        if let Some(rest) = line.trim_start().strip_prefix(".section").filter(|r| r.starts_with(char::is_whitespace)) {
            let name = rest.trim_start().split(',').next().unwrap_or_default();
            section = name.strip_prefix(".text.").map(str::to_string);
            if let Some(name) = &section {
                counts.entry(name.clone()).or_default();
            }
        } else if let (Some(name), Some(code)) = (&section, opcode(line))
            && let Some(counts) = counts.get_mut(name)
        {
            counts.add(code);
        }
    }
    counts
}

/// The operation of a line `/*0150*/  @!P0 LDG.E.128 R4, …`.
fn opcode(line: &str) -> Option<&str> {
    let (_, code) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    code.split_whitespace().find(|word| !word.starts_with('@') && *word != "{").map(|word| word.trim_end_matches(';'))
}

impl Counts {
    fn add(&mut self, opcode: &str) {
        let (operation, modifiers) = opcode.split_once('.').unwrap_or((opcode, ""));
        self.all += 1;
        let wide = modifiers.split('.').any(|modifier| modifier == "128");
        match operation {
            "LDG" if wide => self.loads += 1,
            "LDGSTS" if wide => self.copies += 1,
            "HMMA" | "IMMA" | "QMMA" | "OMMA" | "HGMMA" | "IGMMA" | "QGMMA" => self.tensor += 1,
            "LDL" | "STL" => self.local += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
\t.section\t.text.rope_f32,\"ax\",@progbits
\t.sectionflags\t@\"SHF_BARRIERS=1\"
\t.sectioninfo\t@\"SHI_REGISTERS=40\"
rope_f32:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR6][R2.64] ;
        /*0020*/                   LDG.E R4, desc[UR6][R2.64+0x128] ;
        /*0030*/                   LDGSTS.E.BYPASS.LTC128B.128 [R5], desc[UR6][R2.64] ;
        /*0040*/               @P1 STL.64 [R1], R2 ;
\t.section\t.nv.constant0.rope_f32,\"a\",@progbits
        /*0000*/        .byte   0x00, 0x00
\t.section\t.text.rope_bf16,\"ax\",@progbits
        /*0000*/                   IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4 ;
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/                   LDL R3, [R1] ;
";

    #[test]
    fn instructions_are_counted_by_entry() {
        let counts = count(TEXT);
        assert_eq!(counts["rope_f32"], Counts { all: 5, loads: 1, copies: 1, tensor: 0, local: 1 });
        assert_eq!(counts["rope_bf16"], Counts { all: 3, loads: 0, copies: 0, tensor: 2, local: 1 });
        assert_eq!(counts.len(), 2);
    }
}
