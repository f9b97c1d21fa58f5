//! The host's resources behind the SDK's types: every function is one call across the boundary.

use super::bindings::injection::packhost::plugin::{
    drafts as raw_drafts, log as raw_log, tensors as raw, types as raw_types,
};
use crate::ops::{Comparison, Op, Rounding, Span, Statistic};
use crate::{DType, Failure, ModelInfo, Result, Role, TensorInfo};

/// Several enums that are the same list of names on both sides.
macro_rules! same_names {
    ($($to_raw:ident $to_own:ident: $own:ty = $raw:ty { $($own_name:ident = $raw_name:ident),* $(,)? })*) => {$(
        pub fn $to_raw(value: $own) -> $raw {
            match value { $(<$own>::$own_name => <$raw>::$raw_name),* }
        }
        #[allow(dead_code, reason = "some enums only travel one way")]
        pub fn $to_own(value: $raw) -> $own {
            match value { $(<$raw>::$raw_name => <$own>::$own_name),* }
        }
    )*};
}

same_names! {
    raw_dtype own_dtype: DType = raw_types::Dtype {
        F64 = Fp64, F32 = Fp32, F16 = Fp16, BF16 = Bf16, F8E4M3 = Fp8E4m3, F8E5M2 = Fp8E5m2,
        I64 = Int64, I32 = Int32, I16 = Int16, I8 = Int8,
        U64 = Uint64, U32 = Uint32, U16 = Uint16, U8 = Uint8, Bool = Boolean,
    }
    raw_role own_role: Role = raw_types::Role {
        Embedding = Embedding, LmHead = LmHead, Norm = Norm, AttnQ = AttnQ, AttnK = AttnK, AttnV = AttnV, AttnOut = AttnOut,
        FfnGate = FfnGate, FfnUp = FfnUp, FfnDown = FfnDown, Router = Router, Bias = Bias, Other = Other,
    }
    raw_rounding own_rounding: Rounding = raw::Rounding {
        HalfEven = HalfEven, HalfAway = HalfAway, Floor = Floor, Ceil = Ceil, Trunc = Trunc,
    }
    raw_comparison own_comparison: Comparison = raw::Comparison { Lt = Lt, Le = Le, Eq = Eq, Ne = Ne }
    raw_statistic own_statistic: Statistic = raw::Statistic {
        Max = Max, Min = Min, AbsMax = Absmax, Sum = Sum, Mean = Mean, SumOfSquares = SumOfSquares,
    }
}

/// A span in the contract's type.
fn raw_span(span: Span) -> raw::Span {
    match span {
        Span::Group(size) => raw::Span::Group(size),
        Span::Row => raw::Span::Row,
        Span::Column => raw::Span::Column,
        Span::Whole => raw::Span::Whole,
    }
}

/// An operation in the contract's type.
fn raw_op(op: Op) -> raw::Op {
    match op {
        Op::Input(index) => raw::Op::Input(index),
        Op::Scalar(index) => raw::Op::Scalar(index),
        Op::Constant(value) => raw::Op::Constant(value),
        Op::Add => raw::Op::Add,
        Op::Sub => raw::Op::Sub,
        Op::Mul => raw::Op::Mul,
        Op::Div => raw::Op::Div,
        Op::Min => raw::Op::Min,
        Op::Max => raw::Op::Max,
        Op::Neg => raw::Op::Neg,
        Op::Abs => raw::Op::Abs,
        Op::Sqrt => raw::Op::Sqrt,
        Op::Exp2 => raw::Op::Exp2,
        Op::Log2 => raw::Op::Log2,
        Op::Round(rounding) => raw::Op::Round(raw_rounding(rounding)),
        Op::Compare(comparison) => raw::Op::Compare(raw_comparison(comparison)),
        Op::Select => raw::Op::Select,
        Op::IsFinite => raw::Op::IsFinite,
        Op::CopySign => raw::Op::CopySign,
        Op::Cast(dtype, saturate) => raw::Op::Cast((raw_dtype(dtype), saturate)),
        Op::Reduce(statistic, span) => raw::Op::Reduce((raw_statistic(statistic), raw_span(span))),
        Op::Duplicate => raw::Op::Duplicate,
        Op::Swap => raw::Op::Swap,
        Op::Measure(statistic) => raw::Op::Measure(raw_statistic(statistic)),
    }
}

/// A failure from the host.
pub fn own_failure(failure: raw_types::Failure) -> Failure {
    match failure {
        raw_types::Failure::InvalidParams(text) => Failure::InvalidParams(text),
        raw_types::Failure::Unsupported(text) => Failure::Unsupported(text),
        raw_types::Failure::Failed(text) => Failure::Failed(text),
    }
}

/// A failure for the host.
pub fn raw_failure(failure: Failure) -> raw_types::Failure {
    match failure {
        Failure::InvalidParams(text) => raw_types::Failure::InvalidParams(text),
        Failure::Unsupported(text) => raw_types::Failure::Unsupported(text),
        Failure::Failed(text) => raw_types::Failure::Failed(text),
    }
}

/// Facts about a tensor.
fn own_info(info: raw_types::TensorInfo) -> TensorInfo {
    TensorInfo {
        name: info.name,
        shape: info.shape,
        dtype: own_dtype(info.dtype),
        role: own_role(info.role),
        layer: info.layer,
        expert: info.expert,
        tied_to: info.tied_to,
    }
}

/// Facts about a model.
pub fn own_model(model: raw_types::ModelInfo) -> ModelInfo {
    ModelInfo {
        architecture: model.architecture,
        layers: model.layers,
        hidden_size: model.hidden_size,
        vocab_size: model.vocab_size,
        experts: model.experts,
        tensors: model.tensors.into_iter().map(own_info).collect(),
    }
}

#[derive(Debug)]
pub struct Program(raw::Program);

impl Program {
    pub fn compile(ops: &[Op]) -> Result<Self> {
        let ops: Vec<raw::Op> = ops.iter().copied().map(raw_op).collect();
        raw::Program::compile(&ops).map(Self).map_err(own_failure)
    }
}

#[derive(Debug)]
#[repr(transparent)]
pub struct Tensor(pub raw::Tensor);

/// A result of the host that is a tensor.
fn tensor(result: std::result::Result<raw::Tensor, raw_types::Failure>) -> Result<Tensor> {
    result.map(Tensor).map_err(own_failure)
}

impl Tensor {
    pub fn info(&self) -> TensorInfo {
        own_info(self.0.info())
    }

    pub fn compute(
        &self,
        program: &Program,
        others: &[&Tensor],
        scalars: &[f32],
    ) -> Result<(Tensor, Vec<f64>)> {
        let others: Vec<&raw::Tensor> = others.iter().map(|other| &other.0).collect();
        let computed = self.0.compute(&program.0, &others, scalars);
        let computed = computed.map_err(own_failure)?;
        Ok((Tensor(computed.tensor), computed.measures))
    }

    pub fn measure(
        &self,
        program: &Program,
        others: &[&Tensor],
        scalars: &[f32],
    ) -> Result<Vec<f64>> {
        let others: Vec<&raw::Tensor> = others.iter().map(|other| &other.0).collect();
        self.0
            .measure(&program.0, &others, scalars)
            .map_err(own_failure)
    }

    pub fn kth_magnitude(&self, k: u64) -> Result<f32> {
        self.0.kth_magnitude(k).map_err(own_failure)
    }

    pub fn truncate_rank(&self, rank: u32, seed: u64) -> Result<Tensor> {
        tensor(self.0.truncate_rank(rank, seed))
    }

    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        tensor(self.0.matmul(&other.0))
    }

    pub fn add_normal(&self, seed: u64, scale: f32) -> Result<Tensor> {
        tensor(self.0.add_normal(seed, scale))
    }

    pub fn add_uniform(&self, seed: u64, scale: f32) -> Result<Tensor> {
        tensor(self.0.add_uniform(seed, scale))
    }

    pub fn reshape(&self, shape: &[u64]) -> Result<Tensor> {
        tensor(self.0.reshape(shape))
    }

    pub fn convert(&self, dtype: DType, saturate: bool) -> Result<Tensor> {
        tensor(self.0.convert(raw_dtype(dtype), saturate))
    }

    pub fn duplicate(&self) -> Tensor {
        Tensor(self.0.duplicate())
    }

    pub fn read(&self, offset: u64, count: u32) -> Result<Vec<f32>> {
        self.0.read(offset, count).map_err(own_failure)
    }

    pub fn write(&self, offset: u64, values: &[f32]) -> Result<()> {
        self.0.write(offset, values).map_err(own_failure)
    }
}

#[derive(Debug)]
#[repr(transparent)]
pub struct Draft(pub raw_drafts::Draft);

impl Draft {
    pub fn model(&self) -> ModelInfo {
        own_model(self.0.model())
    }

    pub fn get(&self, name: &str) -> Result<Tensor> {
        tensor(self.0.get(name))
    }

    pub fn put(&self, name: &str, tensor: Tensor) -> Result<()> {
        self.0.put(name, tensor.0).map_err(own_failure)
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name).map_err(own_failure)
    }

    pub fn config(&self) -> String {
        self.0.config()
    }

    pub fn set_config(&self, config: &str) -> Result<()> {
        self.0.set_config(config).map_err(own_failure)
    }
}

/// One line of the log; levels 0 debug, 1 info, 2 warn.
pub fn log(level: u8, message: &str) {
    let level = match level {
        0 => raw_log::Level::Debug,
        1 => raw_log::Level::Info,
        _ => raw_log::Level::Warn,
    };
    raw_log::write(level, message);
}
