//! `packhost edit`.

use packhost_model::Checkpoint;
use packhost_model::writer::{LinkMode, WriteOptions};
use packhost_suite::Error;
use packhost_suite::spec::{Resolution, Tuned, resolve};
use packhost_suite::subject::PlannedEdit;

use super::{name_of, plugin_layer, print_line, toolbox};
use crate::cli::{EditArgs, Link};
use crate::exit::{Exit, Failure};

pub fn run(arguments: EditArgs) -> Result<Exit, Failure> {
    let layer = plugin_layer(&arguments.plugins)?;
    let tuned = match &arguments.tuned_edit_params {
        Some(path) => Tuned::load(path)?,
        None => Tuned::Absent,
    };
    let model_id = arguments
        .model_id
        .clone()
        .unwrap_or_else(|| name_of(&arguments.model));
    let spec = arguments.spec.clone();
    let edit = match resolve(&spec, "", &tuned, &[&model_id]) {
        Resolution::Selected(edit) => edit,
        Resolution::Skipped { reason } => {
            return Err(Error::EditSpec {
                spec,
                status: "skipped".into(),
                reason,
            }
            .into());
        }
        Resolution::Refused { status, reason } => {
            return Err(Error::EditSpec {
                spec,
                status,
                reason,
            }
            .into());
        }
    };
    let base = Checkpoint::open(&arguments.model)?;
    let toolbox = toolbox(&layer, arguments.threads)?;
    let planned = PlannedEdit::new(&toolbox, &base, &edit)?;
    let targets = planned.targets().len();
    let options = WriteOptions {
        link: match arguments.link {
            Link::Copy => LinkMode::Copy,
            Link::Hardlink => LinkMode::Hardlink,
            Link::Symlink => LinkMode::Symlink,
        },
        replace: arguments.replace,
        ..WriteOptions::default()
    };
    let report = planned.write(&base, &arguments.out, &options)?;
    print_line(&format!(
        "{}: {targets} tensors edited, {} shards written, {} linked, {} copied",
        report.dir.display(),
        report.rewritten.len(),
        report.linked.len(),
        report.copied.len()
    ));
    Ok(Exit::Success)
}
