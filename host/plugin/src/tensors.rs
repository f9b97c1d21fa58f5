//! The host side of `packhost:plugin/tensors`: handles, budgets and the way to the device.

use std::sync::Arc;

use packhost_tensor::{DType, Device, Tensor, TensorMut, program::Program};
use wasmtime::component::Resource;

use crate::{
    CallErrorKind, TensorInfo,
    bindings::{
        tensors::{Computed, Host, HostProgram as ProgramHost, HostTensor as TensorHost, Op},
        types::{Dtype, Failure, TensorInfo as WitTensorInfo},
    },
    convert,
    state::{State, fatal, within},
};

/// What a `tensor` handle stands for.
pub struct HostTensor {
    data: Data,
    info: Arc<TensorInfo>,
    access: Access,
}

/// The elements: shared with others, or written to and so our own.
enum Data {
    Shared(Tensor),
    Own(TensorMut),
    /// Only between taking the elements out and putting them back.
    Moving,
}

/// Whether the plugin may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Lent for reading; costs the plugin nothing.
    Lent,
    /// The plugin's own; booked in the budget.
    Own,
}

/// What a `program` handle stands for.
pub struct HostProgram(Program);

/// An answer to the plugin: a value, or a failure that it may handle. The outer error ends the call.
type Answer<T> = wasmtime::Result<Result<T, Failure>>;

/// A handle to a tensor.
type Handle = Resource<HostTensor>;

fn failed<T>(text: impl ToString) -> Answer<T> {
    Ok(Err(Failure::Failed(text.to_string())))
}

impl HostTensor {
    /// A tensor lent to the plugin for reading.
    pub(crate) fn lent(tensor: Tensor, info: Arc<TensorInfo>) -> Self {
        Self {
            data: Data::Shared(tensor),
            info,
            access: Access::Lent,
        }
    }

    fn len(&self) -> u64 {
        match &self.data {
            Data::Shared(tensor) => tensor.len() as u64,
            Data::Own(tensor) => tensor.len() as u64,
            Data::Moving => 0,
        }
    }

    fn shape(&self) -> &[usize] {
        match &self.data {
            Data::Shared(tensor) => tensor.shape(),
            Data::Own(tensor) => tensor.shape(),
            Data::Moving => &[],
        }
    }

    fn dtype(&self) -> DType {
        match &self.data {
            Data::Shared(tensor) => tensor.dtype(),
            Data::Own(tensor) => tensor.dtype(),
            Data::Moving => self.info.dtype,
        }
    }

    /// The elements to be shared; what was written becomes shared without a copy.
    fn share(&mut self) -> Option<Tensor> {
        self.data = match std::mem::replace(&mut self.data, Data::Moving) {
            Data::Own(tensor) => Data::Shared(tensor.freeze()),
            data => data,
        };
        match &self.data {
            Data::Shared(tensor) => Some(tensor.clone()),
            _ => None,
        }
    }

    /// The elements to be written; shared ones are copied first.
    fn write(&mut self) -> Option<&mut TensorMut> {
        self.data = match std::mem::replace(&mut self.data, Data::Moving) {
            Data::Shared(tensor) => Data::Own(TensorMut::copy_of(&tensor)),
            data => data,
        };
        match &mut self.data {
            Data::Own(tensor) => Some(tensor),
            _ => None,
        }
    }
}

impl State {
    /// The tensor behind a handle, cheap to clone.
    pub(crate) fn tensor(&mut self, handle: &Handle) -> wasmtime::Result<Tensor> {
        let entry = self.table.get_mut(handle)?;
        // Never absent: elements move only inside `share` and `write`, which put them back.
        entry
            .share()
            .ok_or_else(|| fatal(CallErrorKind::Host("tensor without elements".into())))
    }

    /// Hands the plugin a tensor of its own; `elements` of it are booked by the caller.
    pub(crate) fn hand_out(
        &mut self,
        tensor: Tensor,
        info: Arc<TensorInfo>,
    ) -> wasmtime::Result<Handle> {
        Ok(self.table.push(HostTensor {
            data: Data::Shared(tensor),
            info,
            access: Access::Own,
        })?)
    }

    /// Takes a tensor back from the plugin for good.
    pub(crate) fn take_back(&mut self, handle: Handle) -> wasmtime::Result<Tensor> {
        let mut entry = self.table.delete(handle)?;
        if entry.access == Access::Own {
            self.give_back(entry.len());
        }
        entry
            .share()
            .ok_or_else(|| fatal(CallErrorKind::Host("tensor without elements".into())))
    }

    /// Books `elements`, runs `work` on the device and hands out its result under the facts of `of`.
    fn produce(
        &mut self,
        of: &Handle,
        elements: u64,
        work: impl FnOnce(&dyn Device, &Tensor) -> packhost_tensor::Result<Tensor>,
    ) -> Answer<Handle> {
        self.take(elements)?;
        let tensor = self.tensor(of)?;
        let info = self.table.get(of)?.info.clone();
        match self.with_device(|device| work(device, &tensor))? {
            Ok(result) => Ok(Ok(self.hand_out(result, info)?)),
            Err(error) => {
                self.give_back(elements);
                failed(error)
            }
        }
    }

    /// What a program is to run on besides its first input.
    fn run(
        &mut self,
        program: &Resource<HostProgram>,
        others: Vec<Handle>,
        mut scalars: Vec<f32>,
    ) -> Answer<Run> {
        let program = self.table.get(program)?.0.clone();
        if program.inputs() > others.len() + 1 {
            return failed(format!(
                "the program reads {} inputs, {} were given",
                program.inputs(),
                others.len() + 1
            ));
        }
        if program.scalars() > scalars.len() {
            return failed(format!(
                "the program reads {} scalars, {} were given",
                program.scalars(),
                scalars.len()
            ));
        }
        // More than the program reads is harmless, but let nobody pass a million.
        within("handles", others.len() as u64, self.limits.handles)?;
        let others = others
            .iter()
            .map(|other| self.tensor(other))
            .collect::<wasmtime::Result<Vec<Tensor>>>()?;
        scalars.truncate(program.scalars());
        Ok(Ok(Run {
            program,
            others,
            scalars,
        }))
    }

    fn with_device<O>(&self, work: impl FnOnce(&dyn Device) -> O) -> wasmtime::Result<O> {
        // A plugin has handles only in calls that lend a device.
        let missing = || fatal(CallErrorKind::Host("no device is lent to this call".into()));
        self.device
            .as_ref()
            .and_then(|device| device.device(work))
            .ok_or_else(missing)
    }
}

/// A program and its arguments, all but input 0.
struct Run {
    program: Program,
    others: Vec<Tensor>,
    scalars: Vec<f32>,
}

impl Run {
    /// The inputs that the program reads; at least the first, which says what the result is like.
    fn inputs<'a>(&'a self, first: &'a Tensor) -> Vec<&'a Tensor> {
        let all = std::iter::once(first).chain(&self.others);
        all.take(self.program.inputs().max(1)).collect()
    }
}

impl Host for State {}

impl TensorHost for State {
    fn info(&mut self, this: Handle) -> wasmtime::Result<WitTensorInfo> {
        self.serve(|state| {
            let entry = state.table.get(&this)?;
            let mut info = WitTensorInfo::from(&*entry.info);
            info.shape = entry.shape().iter().map(|&axis| axis as u64).collect();
            info.dtype = convert::dtype_to_wit(entry.dtype());
            Ok(info)
        })
    }

    fn compute(
        &mut self,
        this: Handle,
        program: Resource<HostProgram>,
        others: Vec<Handle>,
        scalars: Vec<f32>,
    ) -> Answer<Computed> {
        self.serve(|state| {
            let run = match state.run(&program, others, scalars)? {
                Ok(run) => run,
                Err(failure) => return Ok(Err(failure)),
            };
            let elements = state.table.get(&this)?.len();
            let mut measures = Vec::new();
            let handle = state.produce(&this, elements, |device, tensor| {
                let computed = device.compute(&run.program, &run.inputs(tensor), &run.scalars)?;
                measures = computed.measures;
                Ok(computed.tensor)
            })?;
            Ok(handle.map(|tensor| Computed { tensor, measures }))
        })
    }

    fn measure(
        &mut self,
        this: Handle,
        program: Resource<HostProgram>,
        others: Vec<Handle>,
        scalars: Vec<f32>,
    ) -> Answer<Vec<f64>> {
        self.serve(|state| {
            let run = match state.run(&program, others, scalars)? {
                Ok(run) => run,
                Err(failure) => return Ok(Err(failure)),
            };
            let tensor = state.tensor(&this)?;
            let measures = state.with_device(|device| {
                device.measure(&run.program, &run.inputs(&tensor), &run.scalars)
            })?;
            measures.map_or_else(failed, |measures| Ok(Ok(measures)))
        })
    }

    fn kth_magnitude(&mut self, this: Handle, k: u64) -> Answer<f32> {
        self.serve(|state| {
            let tensor = state.tensor(&this)?;
            let result = state.with_device(|device| device.kth_magnitude(&tensor, k))?;
            result.map_or_else(failed, |value| Ok(Ok(value)))
        })
    }

    fn truncate_rank(&mut self, this: Handle, rank: u32, seed: u64) -> Answer<Handle> {
        self.serve(|state| {
            let elements = state.table.get(&this)?.len();
            state.produce(&this, elements, |device, tensor| {
                device.truncate_rank(tensor, rank, seed)
            })
        })
    }

    fn matmul(&mut self, this: Handle, other: Handle) -> Answer<Handle> {
        self.serve(|state| {
            let rhs = state.tensor(&other)?;
            let lhs = state.tensor(&this)?;
            let (&[m, _], &[_, n]) = (lhs.shape(), rhs.shape()) else {
                return failed(format!(
                    "matmul: needs two matrices, not {:?} and {:?}",
                    lhs.shape(),
                    rhs.shape()
                ));
            };
            let elements = (m as u64).saturating_mul(n as u64);
            state.produce(&this, elements, |device, lhs| device.matmul(lhs, &rhs))
        })
    }

    fn add_normal(&mut self, this: Handle, seed: u64, scale: f32) -> Answer<Handle> {
        self.serve(|state| {
            let elements = state.table.get(&this)?.len();
            state.produce(&this, elements, |device, tensor| {
                device.add_normal(tensor, seed, scale)
            })
        })
    }

    fn add_uniform(&mut self, this: Handle, seed: u64, scale: f32) -> Answer<Handle> {
        self.serve(|state| {
            let elements = state.table.get(&this)?.len();
            state.produce(&this, elements, |device, tensor| {
                device.add_uniform(tensor, seed, scale)
            })
        })
    }

    fn reshape(&mut self, this: Handle, shape: Vec<u64>) -> Answer<Handle> {
        self.serve(|state| {
            if shape.len() > MAX_AXES {
                return failed(format!(
                    "reshape: {} axes; at most {MAX_AXES} are served",
                    shape.len()
                ));
            }
            let elements = shape
                .iter()
                .fold(1_u64, |product, &axis| product.saturating_mul(axis));
            let axes: Result<Vec<usize>, _> =
                shape.iter().map(|&axis| usize::try_from(axis)).collect();
            let Ok(axes) = axes else {
                return failed(format!("reshape: {shape:?} does not fit this machine"));
            };
            state.produce(&this, elements, |device, tensor| {
                device.reshape(tensor, &axes)
            })
        })
    }

    fn convert(&mut self, this: Handle, dtype: Dtype, saturate: bool) -> Answer<Handle> {
        self.serve(|state| {
            let elements = state.table.get(&this)?.len();
            let dtype = convert::dtype_of_wit(dtype);
            state.produce(&this, elements, |device, tensor| {
                device.convert(tensor, dtype, saturate)
            })
        })
    }

    fn duplicate(&mut self, this: Handle) -> wasmtime::Result<Handle> {
        self.serve(|state| {
            let elements = state.table.get(&this)?.len();
            state.take(elements)?;
            let tensor = state.tensor(&this)?;
            let info = state.table.get(&this)?.info.clone();
            state.hand_out(tensor, info)
        })
    }

    fn read(&mut self, this: Handle, offset: u64, count: u32) -> Answer<Vec<f32>> {
        self.serve(|state| {
            within("transfer_bytes", u64::from(count) * 4, state.limits.transfer_bytes)?;
            let entry = state.table.get(&this)?;
            let len = entry.len();
            if offset.checked_add(u64::from(count)).is_none_or(|end| end > len) {
                return failed(format!("read: {count} elements from {offset} on are not inside a tensor of {len} elements"));
            }
            // Both fit: they are at most the tensor's length.
            let mut values = vec![0.0; count as usize];
            let result = match &entry.data {
                Data::Shared(tensor) => tensor.read_f32(offset as usize, &mut values),
                Data::Own(tensor) => tensor.read_f32(offset as usize, &mut values),
                Data::Moving => Ok(()),
            };
            result.map_or_else(failed, |()| Ok(Ok(values)))
        })
    }

    fn write(&mut self, this: Handle, offset: u64, values: Vec<f32>) -> Answer<()> {
        self.serve(|state| {
            let entry = state.table.get_mut(&this)?;
            if entry.access == Access::Lent {
                return failed("write: this tensor was lent for reading; duplicate it and write to the copy");
            }
            let (len, count) = (entry.len(), values.len());
            if offset.checked_add(count as u64).is_none_or(|end| end > len) {
                return failed(format!("write: {count} elements from {offset} on are not inside a tensor of {len} elements"));
            }
            let Some(tensor) = entry.write() else { return failed("write: tensor without elements") };
            tensor.write_f32(offset as usize, &values).map_or_else(failed, |()| Ok(Ok(())))
        })
    }

    fn drop(&mut self, this: Handle) -> wasmtime::Result<()> {
        let entry = self.table.delete(this)?;
        if entry.access == Access::Own {
            self.give_back(entry.len());
        }
        Ok(())
    }
}

/// Most axes that a plugin may reshape to.
const MAX_AXES: usize = 8;

impl ProgramHost for State {
    fn compile(&mut self, ops: Vec<Op>) -> Answer<Resource<HostProgram>> {
        self.serve(|state| {
            state.budget.programs += 1;
            within("programs", state.budget.programs, state.limits.programs)?;
            // One more than allowed, so that the check says what is wrong.
            let ops = ops.iter().take(Program::MAX_OPS + 1);
            let converted: Vec<_> = ops.map(convert::op).collect();
            match Program::check(&converted) {
                Ok(program) => {
                    state.take(0)?;
                    Ok(Ok(state.table.push(HostProgram(program))?))
                }
                Err(error) => failed(error),
            }
        })
    }

    fn drop(&mut self, this: Resource<HostProgram>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        self.give_back(0);
        Ok(())
    }
}
