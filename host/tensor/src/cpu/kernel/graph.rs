//! From a stack program to a graph of values: equal expressions shared, constants folded, casts that change nothing removed.

use crate::{
    DType, cast,
    program::{Comparison, Op, Program, Rounding, Span, Statistic, scalar},
};

/// Index of a value. Operands come before the values made of them.
pub(super) type Id = usize;

/// Operations on one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    Neg,
    Abs,
    Sqrt,
    Exp2,
    Log2,
    Round(Rounding),
    IsFinite,
    Cast(DType, bool),
}

/// Operations on two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Compare(Comparison),
    CopySign,
}

/// Elements that share one result of a reduction. Spans of the whole tensor and of single elements have been told apart from
/// rows and groups, so that equal spans compare equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// This many neighbours within a row; the last group of a row may be shorter. A row is one group.
    Group(usize),
    Column,
    Whole,
}

/// How a value came about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Node {
    Input(u8),
    Scalar(u8),
    /// By its bits, so that equal constants compare equal.
    Constant(u32),
    Unary(Unary, Id),
    Binary(Binary, Id, Id),
    Select(Id, Id, Id),
    Reduce(Statistic, Extent, Id),
    /// `bf16(a / b)` with `b` one number per group and both bf16 numbers: multiplied by the reciprocal where that is exact.
    DivideBf16(Id, Id),
}

impl Node {
    /// The values that this one is made of.
    pub(super) fn operands(&self) -> impl Iterator<Item = Id> + use<> {
        let three = match *self {
            Node::Input(_) | Node::Scalar(_) | Node::Constant(_) => [None; 3],
            Node::Unary(_, a) | Node::Reduce(_, _, a) => [Some(a), None, None],
            Node::Binary(_, a, b) | Node::DivideBf16(a, b) => [Some(a), Some(b), None],
            Node::Select(a, b, c) => [Some(a), Some(b), Some(c)],
        };
        three.into_iter().flatten()
    }
}

/// Over which elements a value is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Domain {
    /// The whole tensor.
    Whole,
    /// Groups of this length.
    Group(usize),
    /// Nothing: every element has its own.
    Element,
}

/// The values of a program; the last one made is not necessarily the result.
#[derive(Debug)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    domains: Vec<Domain>,
    /// Whether the value is always a bf16 number (or NaN).
    bf16: Vec<bool>,
    /// Whether the value is always 0 or 1.
    truth: Vec<bool>,
    result: Option<Id>,
    measures: Vec<(Statistic, Id)>,
}

/// Shape and dtypes that a graph is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub rows: usize,
    pub columns: usize,
    pub inputs: Vec<DType>,
    /// How the result is stored, if it is.
    pub stored: Option<Stored>,
}

/// How a result is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub dtype: DType,
    /// What storing does with overflow.
    pub saturate: bool,
}

impl Graph {
    /// The graph of `program` for tensors of `form`, ending with the rounding to the output's dtype.
    pub(super) fn new(program: &Program, form: &Form) -> Self {
        let mut graph = Graph {
            nodes: vec![],
            domains: vec![],
            bf16: vec![],
            truth: vec![],
            result: None,
            measures: vec![],
        };
        let mut stack: Vec<Id> = Vec::new();
        for op in program.ops() {
            let operands = stack.split_off(stack.len() - op.arity().0);
            let a = || operands[0];
            let value = match *op {
                Op::Duplicate => {
                    stack.push(operands[0]);
                    operands[0]
                }
                Op::Swap => {
                    stack.push(operands[1]);
                    operands[0]
                }
                Op::Input(index) => graph.add(Node::Input(index), form),
                Op::Scalar(index) => graph.add(Node::Scalar(index), form),
                Op::Constant(value) => graph.constant(value, form),
                Op::Neg => graph.unary(Unary::Neg, a(), form),
                Op::Abs => graph.unary(Unary::Abs, a(), form),
                Op::Sqrt => graph.unary(Unary::Sqrt, a(), form),
                Op::Exp2 => graph.unary(Unary::Exp2, a(), form),
                Op::Log2 => graph.unary(Unary::Log2, a(), form),
                Op::Round(rounding) => graph.unary(Unary::Round(rounding), a(), form),
                Op::IsFinite => graph.unary(Unary::IsFinite, a(), form),
                Op::Cast(dtype, saturate) => graph.unary(Unary::Cast(dtype, saturate), a(), form),
                Op::Add => graph.binary(Binary::Add, &operands, form),
                Op::Sub => graph.binary(Binary::Sub, &operands, form),
                Op::Mul => graph.binary(Binary::Mul, &operands, form),
                Op::Div => graph.binary(Binary::Div, &operands, form),
                Op::Min => graph.binary(Binary::Min, &operands, form),
                Op::Max => graph.binary(Binary::Max, &operands, form),
                Op::Compare(comparison) => {
                    graph.binary(Binary::Compare(comparison), &operands, form)
                }
                Op::CopySign => graph.binary(Binary::CopySign, &operands, form),
                Op::Select => graph.select(&operands, form),
                Op::Reduce(statistic, span) => graph.reduce(statistic, span, a(), form),
                Op::Measure(statistic) => {
                    graph.measures.push((statistic, a()));
                    continue;
                }
            };
            stack.push(value);
        }
        // A program whose result is stored leaves exactly one value.
        if let (Some(result), Some(Stored { dtype, saturate })) = (stack.pop(), form.stored) {
            graph.result = Some(graph.unary(Unary::Cast(dtype, saturate), result, form));
        }
        graph
    }

    pub(super) fn node(&self, id: Id) -> Node {
        self.nodes[id]
    }

    pub(super) fn domain(&self, id: Id) -> Domain {
        self.domains[id]
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The value to store, already rounded to the output's dtype.
    pub(super) fn result(&self) -> Option<Id> {
        self.result
    }

    /// What is measured, in order.
    pub(super) fn measures(&self) -> &[(Statistic, Id)] {
        &self.measures
    }

    /// The values that the program is there for.
    pub(super) fn wanted(&self) -> impl Iterator<Item = Id> + '_ {
        self.measures.iter().map(|&(_, id)| id).chain(self.result)
    }

    /// Whether a value is always 0 or 1.
    pub(super) fn is_truth_value(&self, id: Id) -> bool {
        self.truth[id]
    }

    /// The constant's value, if it is one.
    pub(super) fn known(&self, id: Id) -> Option<f32> {
        match self.nodes[id] {
            Node::Constant(bits) => Some(f32::from_bits(bits)),
            _ => None,
        }
    }

    /// Adds a value, or finds the one that is equal to it.
    fn add(&mut self, node: Node, form: &Form) -> Id {
        if let Some(id) = self.nodes.iter().position(|other| *other == node) {
            return id;
        }
        self.domains.push(self.domain_of(&node));
        self.bf16.push(self.is_bf16(&node, form));
        self.truth.push(self.is_truth(&node));
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A constant; NaN becomes the canonical one, as the machine demands.
    fn constant(&mut self, value: f32, form: &Form) -> Id {
        self.add(Node::Constant(cast::canonical(value).to_bits()), form)
    }

    fn unary(&mut self, op: Unary, a: Id, form: &Form) -> Id {
        if let Some(value) = self.known(a) {
            return self.constant(apply_unary(op, value), form);
        }
        match (op, self.nodes[a]) {
            // NaN is made canonical where it is stored, so wide casts change nothing.
            (Unary::Cast(DType::F32 | DType::F64, _), _) => a,
            (Unary::Cast(DType::BF16, false), _) if self.bf16[a] => a,
            // Rounding twice to one format is rounding once.
            (Unary::Cast(dtype, _), Node::Unary(Unary::Cast(inner, saturated), _))
                if dtype == inner =>
            {
                // An infinity that the inner cast left would still be saturated by the outer one.
                if op == Unary::Cast(inner, saturated) || saturated {
                    a
                } else {
                    self.add(Node::Unary(op, a), form)
                }
            }
            (Unary::Cast(DType::BF16, false), Node::Binary(Binary::Div, x, y))
                if self.bf16[x]
                    && self.bf16[y]
                    && self.domains[x] == Domain::Element
                    && self.domains[y] != Domain::Element =>
            {
                self.add(Node::DivideBf16(x, y), form)
            }
            (Unary::Abs, Node::Unary(Unary::Abs, _)) => a,
            (Unary::Abs, Node::Unary(Unary::Neg, x)) => self.unary(Unary::Abs, x, form),
            (Unary::Neg, Node::Unary(Unary::Neg, x)) => x,
            _ => self.add(Node::Unary(op, a), form),
        }
    }

    fn binary(&mut self, op: Binary, operands: &[Id], form: &Form) -> Id {
        let (a, b) = (operands[0], operands[1]);
        match (self.known(a), self.known(b)) {
            (Some(x), Some(y)) => self.constant(apply_binary(op, x, y), form),
            _ => self.add(Node::Binary(op, a, b), form),
        }
    }

    fn select(&mut self, operands: &[Id], form: &Form) -> Id {
        let (condition, yes, no) = (operands[0], operands[1], operands[2]);
        match self.known(condition) {
            Some(known) => {
                if known != 0.0 {
                    yes
                } else {
                    no
                }
            }
            None if yes == no => yes,
            None => self.add(Node::Select(condition, yes, no), form),
        }
    }

    fn reduce(&mut self, statistic: Statistic, span: Span, a: Id, form: &Form) -> Id {
        let (rows, columns) = (form.rows, form.columns);
        let (extent, members) = match span {
            Span::Whole => (Extent::Whole, rows * columns),
            Span::Column if columns == 1 => (Extent::Whole, rows),
            Span::Column => (Extent::Column, rows),
            Span::Row if rows == 1 => (Extent::Whole, columns),
            Span::Row => (Extent::Group(columns), columns),
            Span::Group(size) if size as usize >= columns && rows == 1 => (Extent::Whole, columns),
            Span::Group(size) => (
                Extent::Group((size as usize).min(columns)),
                (size as usize).min(columns),
            ),
        };
        match (statistic, self.nodes[a]) {
            (Statistic::AbsMax, _) if members == 1 => self.unary(Unary::Abs, a, form),
            // The f64 square, rounded, is the f32 product: both round the exact square once.
            (Statistic::SumOfSquares, _) if members == 1 => self.binary(Binary::Mul, &[a, a], form),
            _ if members == 1 => a,
            (Statistic::AbsMax, Node::Unary(Unary::Abs | Unary::Neg, x)) => {
                self.add(Node::Reduce(statistic, extent, x), form)
            }
            _ => self.add(Node::Reduce(statistic, extent, a), form),
        }
    }

    fn domain_of(&self, node: &Node) -> Domain {
        match node {
            Node::Input(_) | Node::Reduce(_, Extent::Column, _) => Domain::Element,
            Node::Reduce(_, Extent::Whole, _) => Domain::Whole,
            Node::Reduce(_, Extent::Group(length), _) => Domain::Group(*length),
            other => {
                other
                    .operands()
                    .map(|id| self.domains[id])
                    .fold(Domain::Whole, |a, b| match (a, b) {
                        (Domain::Whole, other) | (other, Domain::Whole) => other,
                        (a, b) if a == b => a,
                        _ => Domain::Element,
                    })
            }
        }
    }

    fn is_truth(&self, node: &Node) -> bool {
        match *node {
            Node::Constant(bits) => bits == 0 || bits == 1f32.to_bits(),
            Node::Binary(Binary::Compare(_), ..) | Node::Unary(Unary::IsFinite, _) => true,
            Node::Binary(Binary::Mul | Binary::Min | Binary::Max, a, b) | Node::Select(_, a, b) => {
                self.truth[a] && self.truth[b]
            }
            _ => false,
        }
    }

    fn is_bf16(&self, node: &Node, form: &Form) -> bool {
        self.is_truth(node)
            || match *node {
                // Every number of an 8-bit format is one of bf16 too.
                Node::Input(index) => {
                    matches!(
                        form.inputs[usize::from(index)],
                        DType::BF16 | DType::F8E4M3 | DType::F8E5M2
                    )
                }
                Node::Unary(Unary::Cast(dtype, _), _) => {
                    matches!(dtype, DType::BF16 | DType::F8E4M3 | DType::F8E5M2)
                }
                Node::DivideBf16(..) => true,
                Node::Constant(bits) => bits & 0xffff == 0,
                // From 128 on bf16 numbers are integers, and the integers up to 256 are bf16 numbers.
                Node::Unary(Unary::Neg | Unary::Abs | Unary::Round(_), a) => self.bf16[a],
                Node::Binary(Binary::Min | Binary::Max, a, b) | Node::Select(_, a, b) => {
                    self.bf16[a] && self.bf16[b]
                }
                Node::Binary(Binary::CopySign, a, _) => self.bf16[a],
                Node::Binary(Binary::Mul, a, b) => {
                    (self.truth[a] && self.bf16[b]) || (self.bf16[a] && self.truth[b])
                }
                Node::Reduce(Statistic::Max | Statistic::Min | Statistic::AbsMax, _, a) => {
                    self.bf16[a]
                }
                _ => false,
            }
    }
}

/// One operation on one number, by definition.
pub(super) fn apply_unary(op: Unary, a: f32) -> f32 {
    match op {
        Unary::Neg => -a,
        Unary::Abs => a.abs(),
        Unary::Sqrt => a.sqrt(),
        Unary::Exp2 => scalar::exp2(a),
        Unary::Log2 => scalar::log2(a),
        Unary::Round(rounding) => scalar::round(rounding, a),
        Unary::IsFinite => f32::from(a.is_finite()),
        Unary::Cast(dtype, saturate) => cast::through(dtype, saturate, a),
    }
}

/// One operation on two numbers, by definition.
pub(super) fn apply_binary(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Min => scalar::min(a, b),
        Binary::Max => scalar::max(a, b),
        Binary::Compare(comparison) => scalar::compare(comparison, a, b),
        Binary::CopySign => scalar::copy_sign(a, b),
    }
}
