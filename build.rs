//! Strips `classify`, and embeds the kernels' PTX: the committed one where it belongs to the source, one compiled anew where it does not and a
//! compiler is found, and no build otherwise.

fn main() {
    // `engine` keeps its line tables; without them the binary that people copy about is a fifth of the size.
    if std::env::var_os("CARGO_CFG_UNIX").is_some() {
        println!("cargo::rustc-link-arg-bin=classify=-Wl,-S");
    }
    #[cfg(feature = "cuda")]
    ptx::embed();
    #[cfg(not(feature = "cuda"))]
    println!("cargo::rerun-if-changed=build.rs");
}

#[cfg(feature = "cuda")]
mod ptx {
    use sha2::{Digest, Sha256};
    use std::fmt::Write as _;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::{env, fs};

    pub fn embed() {
        println!("cargo::rerun-if-changed=kernels");
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        let kernels = root.join("kernels");
        let mut ptx = kernels.join("ptx");
        if let Some(stale) = first_stale(&kernels, &ptx) {
            let fresh = out.join("ptx");
            let script =
                Command::new("python3").arg(kernels.join("build.py")).arg("--output").arg(&fresh).output();
            let built = script.is_ok_and(|output| output.status.success());
            if !built || first_stale(&kernels, &fresh).is_some() {
                println!(
                    "cargo::error=kernels/ptx/{stale}.ptx is not what kernels/{stale}.cu compiles to: run kernels/build.py"
                );
                return;
            }
            println!("cargo::warning=kernels/ptx/{stale}.ptx is stale; compiled anew for this build only");
            ptx = fresh;
        }
        let mut text = String::from("&[\n");
        for name in sources(&kernels) {
            let file = ptx.join(format!("{name}.ptx"));
            writeln!(text, "    ({name:?}, include_str!({file:?})),").expect("a string takes everything");
        }
        text.push(']');
        fs::write(out.join("ptx.rs"), text).expect("OUT_DIR can be written");
    }

    /// Names of the kernels' files, in order.
    fn sources(kernels: &Path) -> Vec<String> {
        files(kernels, "cu")
            .iter()
            .map(|path| path.file_stem().expect("it has an extension").to_string_lossy().into())
            .collect()
    }

    fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.expect("a folder can be listed").path())
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .collect();
        files.sort();
        files
    }

    /// The first source whose PTX is missing or names another source in its first line.
    fn first_stale(kernels: &Path, ptx: &Path) -> Option<String> {
        let headers = files(kernels, "cuh");
        sources(kernels).into_iter().find(|name| {
            let text = fs::read_to_string(ptx.join(format!("{name}.ptx"))).unwrap_or_default();
            let wanted =
                format!("// source sha256 {}", digest(&kernels.join(format!("{name}.cu")), &headers));
            text.lines().next() != Some(&wanted)
        })
    }

    /// As `digest` of kernels/build.py.
    fn digest(source: &Path, headers: &[PathBuf]) -> String {
        let mut hash = Sha256::new();
        for path in std::iter::once(source).chain(headers.iter().map(PathBuf::as_path)) {
            hash.update(path.file_name().expect("a file").to_string_lossy().as_bytes());
            hash.update([0]);
            hash.update(fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
            hash.update([0]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
