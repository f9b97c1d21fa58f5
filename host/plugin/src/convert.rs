//! Between the plain types and the generated ones. Mechanical; what plugins return is checked in `check`.

use packhost_tensor::{
    DType,
    program::{Comparison, Op, Rounding, Span, Statistic},
};

use crate::{
    Descriptor, Failure, ModelInfo, Role, Row, TensorInfo, Value,
    bindings::{
        guard::exports::packhost::plugin::guard as guard_wit, tensors as tensors_wit, types as wit,
    },
};

/// Maps the variants of one enum to those of another, both ways.
macro_rules! same_variants {
    ($ours:ident $theirs:path { $($our:ident $their:ident),* $(,)? }) => {
        impl From<$ours> for $theirs {
            fn from(value: $ours) -> Self {
                use $theirs as Theirs;
                match value { $($ours::$our => Theirs::$their),* }
            }
        }
        impl From<$theirs> for $ours {
            fn from(value: $theirs) -> Self {
                use $theirs as Theirs;
                match value { $(Theirs::$their => $ours::$our),* }
            }
        }
    };
}

same_variants!(Role wit::Role {
    Embedding Embedding, LmHead LmHead, Norm Norm, AttnQ AttnQ, AttnK AttnK, AttnV AttnV, AttnOut AttnOut,
    FfnGate FfnGate, FfnUp FfnUp, FfnDown FfnDown, Router Router, Bias Bias, Other Other,
});
/// The WIT dtype of ours. (Neither type is this crate's own, so no `From`.)
pub(crate) fn dtype_to_wit(dtype: DType) -> wit::Dtype {
    match dtype {
        DType::F64 => wit::Dtype::Fp64,
        DType::F32 => wit::Dtype::Fp32,
        DType::F16 => wit::Dtype::Fp16,
        DType::BF16 => wit::Dtype::Bf16,
        DType::F8E4M3 => wit::Dtype::Fp8E4m3,
        DType::F8E5M2 => wit::Dtype::Fp8E5m2,
        DType::I64 => wit::Dtype::Int64,
        DType::I32 => wit::Dtype::Int32,
        DType::I16 => wit::Dtype::Int16,
        DType::I8 => wit::Dtype::Int8,
        DType::U64 => wit::Dtype::Uint64,
        DType::U32 => wit::Dtype::Uint32,
        DType::U16 => wit::Dtype::Uint16,
        DType::U8 => wit::Dtype::Uint8,
        DType::Bool => wit::Dtype::Boolean,
    }
}

/// Our dtype of the WIT one.
pub(crate) fn dtype_of_wit(dtype: wit::Dtype) -> DType {
    match dtype {
        wit::Dtype::Fp64 => DType::F64,
        wit::Dtype::Fp32 => DType::F32,
        wit::Dtype::Fp16 => DType::F16,
        wit::Dtype::Bf16 => DType::BF16,
        wit::Dtype::Fp8E4m3 => DType::F8E4M3,
        wit::Dtype::Fp8E5m2 => DType::F8E5M2,
        wit::Dtype::Int64 => DType::I64,
        wit::Dtype::Int32 => DType::I32,
        wit::Dtype::Int16 => DType::I16,
        wit::Dtype::Int8 => DType::I8,
        wit::Dtype::Uint64 => DType::U64,
        wit::Dtype::Uint32 => DType::U32,
        wit::Dtype::Uint16 => DType::U16,
        wit::Dtype::Uint8 => DType::U8,
        wit::Dtype::Boolean => DType::Bool,
    }
}

/// Our name of a statistic.
fn statistic(statistic: tensors_wit::Statistic) -> Statistic {
    use tensors_wit::Statistic as Wit;
    match statistic {
        Wit::Max => Statistic::Max,
        Wit::Min => Statistic::Min,
        Wit::Absmax => Statistic::AbsMax,
        Wit::Sum => Statistic::Sum,
        Wit::Mean => Statistic::Mean,
        Wit::SumOfSquares => Statistic::SumOfSquares,
    }
}

/// Our name of a kernel operation.
pub(crate) fn op(op: &tensors_wit::Op) -> Op {
    use tensors_wit::{
        Comparison as WitComparison, Op as Wit, Rounding as WitRounding, Span as WitSpan,
    };
    match *op {
        Wit::Input(index) => Op::Input(index),
        Wit::Scalar(index) => Op::Scalar(index),
        Wit::Constant(value) => Op::Constant(value),
        Wit::Add => Op::Add,
        Wit::Sub => Op::Sub,
        Wit::Mul => Op::Mul,
        Wit::Div => Op::Div,
        Wit::Min => Op::Min,
        Wit::Max => Op::Max,
        Wit::Neg => Op::Neg,
        Wit::Abs => Op::Abs,
        Wit::Sqrt => Op::Sqrt,
        Wit::Exp2 => Op::Exp2,
        Wit::Log2 => Op::Log2,
        Wit::Round(rounding) => Op::Round(match rounding {
            WitRounding::HalfEven => Rounding::HalfEven,
            WitRounding::HalfAway => Rounding::HalfAway,
            WitRounding::Floor => Rounding::Floor,
            WitRounding::Ceil => Rounding::Ceil,
            WitRounding::Trunc => Rounding::Trunc,
        }),
        Wit::Compare(comparison) => Op::Compare(match comparison {
            WitComparison::Lt => Comparison::Lt,
            WitComparison::Le => Comparison::Le,
            WitComparison::Eq => Comparison::Eq,
            WitComparison::Ne => Comparison::Ne,
        }),
        Wit::Select => Op::Select,
        Wit::IsFinite => Op::IsFinite,
        Wit::CopySign => Op::CopySign,
        Wit::Cast((dtype, saturate)) => Op::Cast(dtype_of_wit(dtype), saturate),
        Wit::Reduce((which, span)) => {
            let span = match span {
                WitSpan::Group(size) => Span::Group(size),
                WitSpan::Row => Span::Row,
                WitSpan::Column => Span::Column,
                WitSpan::Whole => Span::Whole,
            };
            Op::Reduce(statistic(which), span)
        }
        Wit::Duplicate => Op::Duplicate,
        Wit::Swap => Op::Swap,
        Wit::Measure(which) => Op::Measure(statistic(which)),
    }
}

impl From<Failure> for wit::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::InvalidParams(text) => wit::Failure::InvalidParams(text),
            Failure::Unsupported(text) => wit::Failure::Unsupported(text),
            Failure::Failed(text) => wit::Failure::Failed(text),
        }
    }
}

impl From<wit::Failure> for Failure {
    fn from(failure: wit::Failure) -> Self {
        match failure {
            wit::Failure::InvalidParams(text) => Failure::InvalidParams(text),
            wit::Failure::Unsupported(text) => Failure::Unsupported(text),
            wit::Failure::Failed(text) => Failure::Failed(text),
        }
    }
}

impl From<wit::Descriptor> for Descriptor {
    fn from(descriptor: wit::Descriptor) -> Self {
        let wit::Descriptor {
            id,
            version,
            title,
            schema,
        } = descriptor;
        Self {
            id,
            version,
            title,
            schema,
        }
    }
}

impl From<&TensorInfo> for wit::TensorInfo {
    fn from(info: &TensorInfo) -> Self {
        Self {
            name: info.name.clone(),
            shape: info.shape.clone(),
            dtype: dtype_to_wit(info.dtype),
            role: info.role.into(),
            layer: info.layer,
            expert: info.expert,
            tied_to: info.tied_to.clone(),
        }
    }
}

impl From<&ModelInfo> for wit::ModelInfo {
    fn from(model: &ModelInfo) -> Self {
        Self {
            architecture: model.architecture.clone(),
            layers: model.layers,
            hidden_size: model.hidden_size,
            vocab_size: model.vocab_size,
            experts: model.experts,
            tensors: model.tensors.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Row> for guard_wit::Row {
    fn from(row: &Row) -> Self {
        let value = match &row.value {
            Value::Number(number) => guard_wit::Value::Number(*number),
            Value::Vector(vector) => guard_wit::Value::Vector(vector.clone()),
            Value::Text(text) => guard_wit::Value::Text(text.clone()),
        };
        Self {
            scope: row.scope.clone(),
            quantity: row.quantity.clone(),
            value,
        }
    }
}

/// A table as the engine lowers it.
pub(crate) fn rows(rows: &[Row]) -> Vec<guard_wit::Row> {
    rows.iter().map(Into::into).collect()
}
