#![allow(clippy::unwrap_used)]
use super::*;

/// NVRTC, or a line that says why the test did not run.
fn nvrtc() -> Option<Nvrtc> {
    Nvrtc::find(|_| Rank::Best).inspect_err(|why| println!("not run: {why}; {ADVICE}")).ok()
}

#[test]
fn a_missing_library_is_a_sentence() {
    let path = Path::new("/nowhere/libnvrtc.so.12");
    let why = Nvrtc::open(path).err().unwrap();
    assert!(why.starts_with("/nowhere/libnvrtc.so.12 cannot be loaded"), "{why}");
    let why = Nvrtc::choose(vec![path.into()], |_| Rank::Best).err().unwrap();
    assert!(why.contains("cannot be loaded"), "{why}");
    let why = Nvrtc::choose(Vec::new(), |_| Rank::Best).err().unwrap();
    assert_eq!(why, "NVRTC is not installed");
}

#[test]
fn ranks_decide() {
    let Some(path) = nvrtc().map(|found| found.path().to_path_buf()) else { return };
    let choose = |rank: Rank| Nvrtc::choose(vec![path.clone(), path.clone()], |_| rank.clone());
    assert!(choose(Rank::Usable).is_ok());
    assert_eq!(choose(Rank::Useless("too new".into())).err().unwrap(), "too new; too new");
}

#[test]
#[cfg(target_os = "linux")]
fn another_library_is_a_sentence() {
    let Some(why) = ["libc.so.6", "libm.so.6"].iter().find_map(|name| Nvrtc::open(Path::new(name)).err()) else {
        return println!("not run: there is no glibc");
    };
    assert!(why.contains("is not NVRTC") || why.contains("cannot be loaded"), "{why}");
}

#[test]
fn it_compiles_a_kernel_to_the_same_cubin_each_time() {
    let Some(nvrtc) = nvrtc() else { return };
    assert!(nvrtc.version() >= OLDEST && nvrtc.archs().contains(&Arch::new(9, 0)), "{nvrtc}");
    let source = Source::named("rms_norm").unwrap();
    let compile = |more: &[&str]| nvrtc.compile(&source, Target::Cubin(Arch::new(9, 0)), more).unwrap();
    let (first, second) = (compile(&[]), compile(&["--ptxas-options=-v"]));
    assert!(first.image.0.starts_with(b"\x7fELF") && !first.image.is_ptx());
    assert_eq!(first.image.0, second.image.0);
    assert!(second.log.contains("entry function 'rms_norm_f32'"), "{}", second.log);
    let ptx = nvrtc.compile(&source, Target::Ptx(Arch::new(8, 0)), &[]).unwrap().image;
    assert!(ptx.is_ptx() && ptx.0.ends_with(b"\0"));
    assert!(String::from_utf8_lossy(&ptx.0).contains(".target sm_80"));
}

#[test]
fn an_error_names_file_and_line() {
    let Some(nvrtc) = nvrtc() else { return };
    let source = Source { name: "broken", text: "#include \"tritter.cuh\"\nint f() { return nothing; }\n" };
    let why = nvrtc.compile(&source, Target::Cubin(Arch::new(8, 0)), &[]).err().unwrap();
    assert!(why.contains("broken.cu(2)") && why.contains("nothing"), "{why}");
    let source = Source { name: "missing", text: "#include \"none.cuh\"\n" };
    let why = nvrtc.compile(&source, Target::Cubin(Arch::new(8, 0)), &[]).err().unwrap();
    assert!(why.contains("missing.cu(1)") && why.contains("none.cuh"), "{why}");
    let why = nvrtc.compile(&source, Target::Cubin(Arch::new(99, 0)), &[]).err().unwrap();
    assert!(why.contains("missing.cu"), "{why}");
}
