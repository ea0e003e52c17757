//! The compiled kernels: PTX for compute_70, which every card from V100 on takes.

/// Name of the source file, text. `build.rs` sees to it that they belong to `kernels/*.cu`.
pub const MODULES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_and_driver_of_the_project_takes_it() {
        for (name, text) in MODULES {
            assert!(text.contains("\n.target sm_70\n"), "{name}");
            // ISA 8.1 came with CUDA 12.1.
            assert!(text.contains("\n.version 8.1\n"), "{name}");
        }
    }
}
