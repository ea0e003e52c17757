//! The compiled kernels: PTX for compute_70, which every card from V100 on takes.

/// Name of the source file, text. `build.rs` sees to it that they belong to `kernels/*.cu`.
pub const MODULES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::plan::node::{Arg, Call, Launch};
    use crate::backend::cuda::plan::{Loss, Plan, PlanOptions, Purpose, Recipe, Rule, ScalePolicy};
    use crate::backend::cuda::storage::Storage;
    use crate::config::{Chip, Decay, Form, Norm, Pointwise, Slabs};
    use crate::model::freeze::Freeze;
    use crate::model::spec::RESNET_TINY;
    use std::collections::BTreeMap;

    /// What a compiled kernel declares: the types of its parameters, and the most threads of a block; 0 where it says
    /// nothing.
    #[derive(Debug, Default, Clone, PartialEq)]
    struct Entry {
        parameters: Vec<String>,
        threads: u32,
    }

    fn entries(text: &str) -> BTreeMap<String, Entry> {
        let (mut entries, mut name) = (BTreeMap::new(), String::new());
        for line in text.lines() {
            let line = line.trim();
            if let Some(rest) = line.strip_prefix(".visible .entry ") {
                name = rest.trim_end_matches(['(', ')']).to_owned();
                entries.insert(name.clone(), Entry::default());
            } else if let Some(entry) = entries.get_mut(&name) {
                if let Some(rest) = line.strip_prefix(".param .") {
                    entry.parameters.extend(rest.split(' ').next().map(str::to_owned));
                } else if let Some(rest) = line.strip_prefix(".maxntid ") {
                    entry.threads = rest.split(", ").map(|side| side.parse::<u32>().unwrap()).product();
                } else if line == "}" {
                    name.clear();
                }
            }
        }
        entries
    }

    /// The driver reads as many bytes of each argument as the kernel declares, and refuses larger blocks.
    #[test]
    fn every_launch_has_the_arguments_and_the_block_that_its_kernel_declares() {
        let declared: BTreeMap<String, Entry> = MODULES.iter().flat_map(|(_, text)| entries(text)).collect();
        let check = |launch: &Launch| {
            let entry = declared.get(&launch.kernel).unwrap_or_else(|| panic!("no kernel {}", launch.kernel));
            let given = launch.args.iter().map(|arg| match arg {
                Arg::Region(..) | Arg::Part(..) | Arg::Null | Arg::U64(_) => "u64",
                Arg::U32(_) => "u32",
                Arg::F32(_) => "f32",
            });
            assert_eq!(given.collect::<Vec<_>>(), entry.parameters, "{}", launch.kernel);
            let threads: u32 = launch.geometry.block.iter().product();
            let most = if entry.threads == 0 { 1024 } else { entry.threads };
            assert!(threads <= most, "{}: {threads} of {most}", launch.kernel);
        };
        let purposes = [
            Purpose::Accumulate,
            Purpose::Finish { sum: true },
            Purpose::Finish { sum: false },
            Purpose::Evaluate,
        ];
        let all = Recipe {
            rule: Rule::Lamb,
            loss: Loss::BinaryCrossEntropy,
            averages: true,
            clip: true,
            drop_path: true,
            erase: true,
            freeze: Freeze::NONE,
            ranks: None,
            sync_norms: false,
        };
        let recipes = [
            Recipe::PLAIN,
            all,
            Recipe { rule: Rule::Lars, ..all },
            Recipe { rule: Rule::Lars, ..Recipe::PLAIN },
            Recipe { clip: true, ..Recipe::PLAIN },
            Recipe { freeze: Freeze::up_to(1), ..all },
            Recipe { ranks: Some(2), ..Recipe::PLAIN },
            Recipe { ranks: Some(2), sync_norms: true, ..all },
        ];
        let slabs = Slabs { cache_kb: 30, launch_kb: 0 };
        let norm = Norm::OnePass;
        let chip = Chip { multiprocessors: 2, shared_kib: 20, pause_kb: 1 };
        let forms = [
            Form::BASE,
            Form { norm, chip, ..Form::BASE },
            Form { pointwise: Pointwise::Fused, slabs, ..Form::BASE },
        ];
        for (storage, form) in Storage::ALL.into_iter().flat_map(|storage| forms.map(|form| (storage, form)))
        {
            for (purpose, recipe) in
                purposes.into_iter().flat_map(|purpose| recipes.map(|recipe| (purpose, recipe)))
            {
                let options = PlanOptions {
                    spec: RESNET_TINY,
                    resolution: 32,
                    batch: 2,
                    storage,
                    purpose,
                    form,
                    decay: Decay::Weights,
                    recipe,
                    scale: ScalePolicy::FP16,
                    keep: false,
                    without: vec![],
                };
                for node in Plan::new(&options).unwrap().nodes {
                    if let Call::Kernel(launch) = &node.call {
                        check(launch);
                    }
                }
            }
        }
    }

    #[test]
    fn every_card_and_driver_of_the_project_takes_it() {
        for (name, text) in MODULES {
            assert!(text.contains("\n.target sm_70\n"), "{name}");
            // ISA 8.1 came with CUDA 12.1.
            assert!(text.contains("\n.version 8.1\n"), "{name}");
        }
    }
}
