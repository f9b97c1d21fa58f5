//! `packhost doctor`: what this machine offers, and the tables of the program's interface.

use nvml_wrapper::Nvml;

use super::{print, print_line};
use crate::cli::DoctorArgs;
use crate::exit::{Exit, Failure};
use crate::settings::Layer;

pub fn run(arguments: &DoctorArgs) -> Result<Exit, Failure> {
    if arguments.exit_codes {
        for (code, meaning) in Exit::TABLE {
            print_line(&format!("{code:>4} {meaning}"));
        }
    } else if arguments.settings {
        for (key, variables, meaning) in Layer::TABLE {
            print_line(&format!(
                "{key}\n    {}\n    variables: {}",
                meaning.trim(),
                variables.join(", ")
            ));
        }
    } else {
        machine();
    }
    Ok(Exit::Success)
}

fn machine() {
    print_line(&format!("packhost {}", env!("CARGO_PKG_VERSION")));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    print_line(&format!("cores: {cores}"));
    print_line(&format!("vector instructions: {}", vector_instructions()));
    let tiles = match packhost_tensor::cpu::matmul::uses_matrix_tiles() {
        true => "used for bf16 weights",
        false => "none, or none of a kind that this version uses",
    };
    print_line(&format!("matrix tiles: {tiles}"));
    print_line(&format!(
        "plugin interface: packhost:plugin@{}",
        packhost_plugin::INTERFACE_VERSION
    ));
    print(&gpus());
    print_line("tensor device: cpu (this version has no other)");
}

/// The widest instruction set that the kernels can use here.
fn vector_instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") {
            return "AVX-512";
        }
        if std::is_x86_feature_detected!("avx2") {
            return "AVX2";
        }
    }
    "baseline"
}

/// GPUs by the driver's management library. A machine without one is no fault.
fn gpus() -> String {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => return format!("GPU: none usable ({error}); not needed by this version\n"),
    };
    let count = nvml.device_count().unwrap_or(0);
    let mut text = format!("GPU: {count} devices, not used by this version\n");
    for index in 0..count {
        let Ok(device) = nvml.device_by_index(index) else {
            continue;
        };
        let name = device.name().unwrap_or_else(|_| "unknown".into());
        let memory = device.memory_info().map_or(0, |memory| memory.total);
        text += &format!(
            "  {index}: {name}, {:.1} GiB\n",
            memory as f64 / (1_u64 << 30) as f64
        );
    }
    text
}
