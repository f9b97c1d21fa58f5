//! Code generation: the steps of one routine, in the order that keeps the accumulator busy.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    graph::{Binary, Domain, Extent, Form, Graph, Id, Node, Unary},
    machine::{Code, PlaceId, Step},
    plan::{GroupRoutine, Order, PlaceKind, Sink, Sweep},
};
use crate::{
    DType,
    program::{Comparison, Rounding, Statistic},
};

/// Steps for the machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Routine {
    pub steps: Vec<Step>,
    /// The steps with true divisions, for tiles with a divisor whose reciprocal would not do.
    pub exact: Option<Vec<Step>>,
}

/// Operations beyond which a value that two phases need is kept rather than computed twice.
const CHEAP: usize = 3;

/// The values over elements that are computed in one phase and kept for later ones.
pub(super) fn kept(graph: &Graph, phases: &[Vec<Sink>]) -> BTreeSet<Id> {
    let mut kept = BTreeSet::new();
    let mut computed = BTreeSet::new();
    for sinks in phases {
        let mut here = BTreeSet::new();
        let mut open: Vec<Id> = sinks.iter().map(Sink::value).collect();
        while let Some(id) = open.pop() {
            if graph.domain(id) != Domain::Element || is_source(graph, id) || !here.insert(id) {
                continue;
            }
            if computed.contains(&id) && cost(graph, id) > CHEAP {
                kept.insert(id);
                continue;
            }
            open.extend(graph.node(id).operands());
        }
        computed.extend(here);
    }
    kept
}

/// Whether a value over elements is read rather than computed.
fn is_source(graph: &Graph, id: Id) -> bool {
    matches!(
        graph.node(id),
        Node::Input(_) | Node::Reduce(_, Extent::Column, _)
    )
}

/// Operations on elements that a value takes.
fn cost(graph: &Graph, id: Id) -> usize {
    let mut seen = BTreeSet::new();
    let mut open = vec![id];
    while let Some(id) = open.pop() {
        if graph.domain(id) == Domain::Element && !is_source(graph, id) && seen.insert(id) {
            open.extend(graph.node(id).operands());
        }
    }
    seen.len()
}

/// The routine of one phase over the elements of a tile.
pub(super) fn elements(
    graph: &Graph,
    form: &Form,
    sweep: &mut Sweep,
    sinks: &[Sink],
    kept: &BTreeSet<Id>,
) -> Routine {
    let mut emitter = Emitter::new(graph, form, sweep, Domain::Element);
    // What an earlier phase kept is read; what this phase computes for later ones is written.
    for &id in kept {
        let place = emitter.sweep.place(PlaceKind::Elements(id));
        emitter.kept.insert(id, place);
    }
    emitter.already = kept.intersection(&emitter.sweep.written).copied().collect();
    for sink in sinks {
        emitter.count(sink.value());
    }
    for sink in sinks {
        emitter.sink(*sink);
    }
    emitter.finish()
}

/// What the planner knows of a program when it plans a sweep.
pub(super) struct Known<'a> {
    pub graph: &'a Graph,
    pub form: &'a Form,
    pub order: &'a Order,
    /// The values that the sweep needs.
    pub needed: &'a [bool],
}

/// The numbers of one class that are first known before `phase`, where there are any.
pub(super) fn groups(
    known: &Known<'_>,
    sweep: &mut Sweep,
    class: usize,
    length: usize,
    phase: usize,
) -> Option<GroupRoutine> {
    let &Known {
        graph,
        form,
        order,
        needed,
    } = known;
    let here: Vec<Id> = (0..graph.len())
        .filter(|&id| {
            needed[id] && graph.domain(id) == Domain::Group(length) && order.phase[id] == phase
        })
        .collect();
    if here.is_empty() {
        return None;
    }
    // Elements read numbers, so only what the routines over elements (made before) have asked for is spread.
    let wanted = |sweep: &Sweep, kind| sweep.places.contains(&kind);
    let computed: Vec<Id> = here
        .iter()
        .copied()
        .filter(|&id| !matches!(graph.node(id), Node::Reduce(..)))
        .collect();
    let used_later = |id: Id| {
        (0..graph.len()).any(|user| {
            needed[user]
                && order.phase[user] > phase
                && graph.domain(user) == Domain::Group(length)
                && !matches!(graph.node(user), Node::Reduce(..))
                && graph.node(user).operands().any(|operand| operand == id)
        })
    };
    let outputs: Vec<Id> = computed
        .into_iter()
        .filter(|&id| {
            wanted(sweep, PlaceKind::Numbers(id))
                || wanted(sweep, PlaceKind::Reciprocals(id))
                || used_later(id)
        })
        .collect();
    let mut emitter = Emitter::new(graph, form, sweep, Domain::Group(length));
    emitter.known_groups = (0..graph.len())
        .filter(|&id| {
            needed[id]
                && graph.domain(id) == Domain::Group(length)
                && (order.phase[id] < phase || matches!(graph.node(id), Node::Reduce(..)))
        })
        .collect();
    for &id in &outputs {
        emitter.count(id);
    }
    for &id in &outputs {
        emitter.compute(id);
        let place = emitter.sweep.place(PlaceKind::Groups(id));
        emitter.step(Code::Put, place, 0);
        emitter.consume(id);
    }
    let routine = emitter.finish();
    let mut pairs = |kind: fn(Id) -> PlaceKind| -> Vec<(PlaceId, PlaceId)> {
        here.iter()
            .filter(|&&id| wanted(sweep, kind(id)))
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .map(|id| (sweep.place(PlaceKind::Groups(id)), sweep.place(kind(id))))
            .collect()
    };
    let spread = pairs(PlaceKind::Numbers);
    let invert = pairs(PlaceKind::Reciprocals);
    Some(GroupRoutine {
        class,
        routine,
        spread,
        invert,
    })
}

/// Makes the steps of one routine.
struct Emitter<'a> {
    graph: &'a Graph,
    form: &'a Form,
    sweep: &'a mut Sweep,
    /// Elements, or the groups of one length.
    domain: Domain,
    steps: Vec<Step>,
    exact: Vec<Step>,
    /// The value in the accumulator.
    accumulator: Option<Id>,
    /// Values of the block in memory.
    home: BTreeMap<Id, PlaceId>,
    /// Blocks whose value is not needed any more.
    free: Vec<PlaceId>,
    /// How often each value will still be used.
    uses: BTreeMap<Id, usize>,
    /// Places of the values that are kept for later phases, and which of them are there already.
    kept: BTreeMap<Id, PlaceId>,
    already: BTreeSet<Id>,
    /// Values of groups that are in memory.
    known_groups: BTreeSet<Id>,
}

impl<'a> Emitter<'a> {
    fn new(graph: &'a Graph, form: &'a Form, sweep: &'a mut Sweep, domain: Domain) -> Self {
        Emitter {
            graph,
            form,
            sweep,
            domain,
            steps: vec![],
            exact: vec![],
            accumulator: None,
            home: BTreeMap::new(),
            free: vec![],
            uses: BTreeMap::new(),
            kept: BTreeMap::new(),
            already: BTreeSet::new(),
            known_groups: BTreeSet::new(),
        }
    }

    fn finish(self) -> Routine {
        let exact = (self.exact != self.steps).then_some(self.exact);
        Routine {
            steps: self.steps,
            exact,
        }
    }

    fn step(&mut self, code: Code, a: PlaceId, b: PlaceId) {
        self.steps.push(Step { code, a, b });
        self.exact.push(Step { code, a, b });
    }

    /// Whether the value varies within the routine, so that it lives in the accumulator or in blocks.
    fn varies(&self, id: Id) -> bool {
        self.graph.domain(id) == self.domain
    }

    /// Whether the value is read rather than computed.
    fn is_leaf(&self, id: Id) -> bool {
        match self.domain {
            Domain::Element => is_source(self.graph, id) || self.already.contains(&id),
            _ => self.known_groups.contains(&id),
        }
    }

    /// Counts the uses of `id` and, the first time, of what it is made of.
    fn count(&mut self, id: Id) {
        if !self.varies(id) {
            return;
        }
        let uses = self.uses.entry(id).or_insert(0);
        *uses += 1;
        if *uses == 1 && !self.is_leaf(id) {
            self.graph
                .node(id)
                .operands()
                .for_each(|operand| self.count(operand));
        }
    }

    /// One use of `id` is done; its block is free after the last.
    fn consume(&mut self, id: Id) {
        if let Some(uses) = self.uses.get_mut(&id) {
            *uses -= 1;
            if *uses == 0
                && let Some(place) = self.home.remove(&id)
                && self.sweep.places[usize::from(place)] == PlaceKind::Block
            {
                self.free.push(place);
            }
        }
    }

    /// The place of a value that is one number for each vector.
    fn number(&mut self, id: Id) -> PlaceId {
        let kind = match self.graph.domain(id) {
            Domain::Whole => PlaceKind::Whole(id),
            _ => PlaceKind::Numbers(id),
        };
        self.sweep.place(kind)
    }

    /// Puts the accumulator, which holds `id`, into a block.
    fn save(&mut self, id: Id) {
        if self.home.contains_key(&id) {
            return;
        }
        let place = self
            .free
            .pop()
            .unwrap_or_else(|| self.sweep.place(PlaceKind::Block));
        self.step(Code::Put, place, 0);
        self.home.insert(id, place);
    }

    /// Brings `id` into the accumulator.
    fn compute(&mut self, id: Id) {
        if self.accumulator == Some(id) {
            return;
        }
        if let Some(&place) = self.home.get(&id) {
            self.step(Code::Get, place, 0);
        } else if !self.varies(id) {
            let place = self.number(id);
            self.step(Code::Spread, place, 0);
        } else {
            if self.is_leaf(id) {
                self.read(id);
            } else {
                self.make(id);
            }
            if let (Some(&place), false) = (self.kept.get(&id), self.already.contains(&id)) {
                self.step(Code::Put, place, 0);
                self.sweep.written.insert(id);
                self.home.insert(id, place);
            } else if self.uses.get(&id).is_some_and(|&uses| uses > 1) {
                self.save(id);
            }
        }
        self.accumulator = Some(id);
    }

    /// Reads a leaf. Values that lie in memory as blocks do are at home there.
    fn read(&mut self, id: Id) {
        match (self.kept.get(&id), self.domain, self.graph.node(id)) {
            (Some(&place), _, _) => {
                self.step(Code::Get, place, 0);
                self.home.insert(id, place);
            }
            (None, Domain::Element, Node::Input(index)) => {
                let place = self.sweep.place(PlaceKind::Input(index));
                let code = match self.form.inputs[usize::from(index)] {
                    DType::BF16 => Code::LoadBf16,
                    DType::F32 => Code::LoadF32,
                    DType::F16 => Code::LoadF16,
                    _ => Code::LoadOther,
                };
                self.step(code, place, 0);
            }
            (None, Domain::Element, _) => {
                let place = self.sweep.place(PlaceKind::Columns(id));
                self.step(Code::GetColumns, place, 0);
            }
            (None, ..) => {
                let place = self.sweep.place(PlaceKind::Groups(id));
                self.step(Code::Get, place, 0);
                self.home.insert(id, place);
            }
        }
    }

    /// Stores the accumulator as the result. Rounding to bf16 just before is part of storing.
    fn store(&mut self) {
        let place = self.sweep.place(PlaceKind::Output);
        let rounded = self
            .steps
            .last()
            .is_some_and(|step| step.code == Code::ToBf16);
        let code = match self.form.stored.map(|stored| stored.dtype) {
            Some(DType::BF16) if rounded => {
                self.steps.pop();
                self.exact.pop();
                Code::StoreBf16Rounded
            }
            Some(DType::BF16) => Code::StoreBf16,
            Some(DType::F32) => Code::StoreF32,
            Some(DType::F16) => Code::StoreF16,
            _ => Code::StoreOther,
        };
        self.step(code, place, 0);
    }

    /// Computes a value from its operands.
    fn make(&mut self, id: Id) {
        match self.graph.node(id) {
            Node::Unary(op, a) => {
                self.compute(a);
                self.step(unary_code(op), 0, 0);
                self.consume(a);
            }
            Node::Binary(op, a, b) => self.binary(op, a, b),
            Node::Select(condition, yes, no) => self.select(condition, yes, no),
            Node::DivideBf16(a, b) => {
                self.compute(a);
                let divisor = self.number(b);
                let reciprocal = self.sweep.place(match self.graph.domain(b) {
                    Domain::Whole => PlaceKind::WholeReciprocal(b),
                    _ => PlaceKind::Reciprocals(b),
                });
                self.steps.push(Step {
                    code: Code::MulN,
                    a: reciprocal,
                    b: 0,
                });
                self.exact.push(Step {
                    code: Code::DivN,
                    a: divisor,
                    b: 0,
                });
                self.step(Code::ToBf16, 0, 0);
                self.consume(a);
            }
            // Leaves are read, and reductions and constants never vary within a routine that computes them.
            Node::Input(_) | Node::Scalar(_) | Node::Constant(_) | Node::Reduce(..) => {}
        }
    }

    fn binary(&mut self, op: Binary, a: Id, b: Id) {
        let codes = binary_codes(op);
        match (self.varies(a), self.varies(b)) {
            (true, false) => {
                self.compute(a);
                let place = self.number(b);
                self.step(self.limit_code(op, b).unwrap_or(codes.number), place, 0);
            }
            (false, true) => {
                self.compute(b);
                let place = self.number(a);
                self.step(
                    self.limit_code(op, a).unwrap_or(codes.reversed_number),
                    place,
                    0,
                );
            }
            // Two numbers of different classes.
            (false, false) => {
                self.compute(a);
                let place = self.number(b);
                self.step(codes.number, place, 0);
            }
            (true, true) => {
                if !self.home.contains_key(&a) && !self.home.contains_key(&b) {
                    let first = self.first_of(a, b);
                    self.compute(first);
                    self.save(first);
                }
                if self.home.contains_key(&b) && self.accumulator != Some(b)
                    || a == b
                    || !self.home.contains_key(&a)
                {
                    self.compute(a);
                    self.step(codes.block, self.home[&b], 0);
                } else {
                    self.compute(b);
                    self.step(codes.reversed_block, self.home[&a], 0);
                }
            }
        }
        self.consume(a);
        self.consume(b);
    }

    /// Limits by a constant that is neither zero nor NaN take one instruction.
    fn limit_code(&self, op: Binary, limit: Id) -> Option<Code> {
        let known = self.graph.known(limit)?;
        match op {
            Binary::Min if known != 0.0 && !known.is_nan() => Some(Code::LowerN),
            Binary::Max if known != 0.0 && !known.is_nan() => Some(Code::RaiseN),
            _ => None,
        }
    }

    /// Which of two operands to compute first, into a block: one that the other is made of, or else the dearer.
    fn first_of(&self, a: Id, b: Id) -> Id {
        if self.contains(b, a)
            || (!self.contains(a, b) && cost(self.graph, a) >= cost(self.graph, b))
        {
            a
        } else {
            b
        }
    }

    /// Whether `whole` is made of `part`.
    fn contains(&self, whole: Id, part: Id) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![whole];
        while let Some(id) = open.pop() {
            if id == part {
                return true;
            }
            // Operands come before what is made of them.
            if id > part && self.varies(id) && seen.insert(id) {
                open.extend(self.graph.node(id).operands());
            }
        }
        false
    }

    fn select(&mut self, condition: Id, yes: Id, no: Id) {
        for id in [yes, no] {
            if self.varies(id) && !self.home.contains_key(&id) {
                self.compute(id);
                self.save(id);
            }
        }
        self.compute(condition);
        let (yes_varies, no_varies) = (self.varies(yes), self.varies(no));
        let code = match (yes_varies, no_varies) {
            (true, true) => Code::SelectBB,
            (true, false) => Code::SelectBN,
            (false, true) => Code::SelectNB,
            (false, false) => Code::SelectNN,
        };
        let [yes_place, no_place] = [(yes, yes_varies), (no, no_varies)].map(|(id, varies)| {
            if varies {
                self.home[&id]
            } else {
                self.number(id)
            }
        });
        self.step(code, yes_place, no_place);
        for id in [condition, yes, no] {
            self.consume(id);
        }
    }

    fn sink(&mut self, sink: Sink) {
        self.compute(sink.value());
        match sink {
            // Always the last sink of its phase.
            Sink::Store(_) => self.store(),
            Sink::Reduce(index, _) => {
                let reduction = self.sweep.reductions[index];
                let column = reduction.extent == Extent::Column;
                let truth = self.graph.is_truth_value(sink.value());
                let code = match (reduction.statistic, column) {
                    (Statistic::Max, false) => Code::ReduceMax,
                    (Statistic::Min, false) => Code::ReduceMin,
                    (Statistic::AbsMax, false) => Code::ReduceAbsMax,
                    // Zeros and ones are their own squares.
                    (Statistic::Sum | Statistic::Mean | Statistic::SumOfSquares, false)
                        if truth =>
                    {
                        Code::ReduceTruth
                    }
                    (Statistic::Sum | Statistic::Mean, false) => Code::ReduceSum,
                    (Statistic::SumOfSquares, false) => Code::ReduceSquares,
                    (Statistic::Max, true) => Code::ColumnMax,
                    (Statistic::Min, true) => Code::ColumnMin,
                    (Statistic::AbsMax, true) => Code::ColumnAbsMax,
                    (Statistic::Sum | Statistic::Mean, true) => Code::ColumnSum,
                    (Statistic::SumOfSquares, true) => Code::ColumnSquares,
                };
                self.step(code, index as u16, 0);
            }
        }
        self.consume(sink.value());
    }
}

/// The four forms of an operation on two values: second operand a block or a number, and the same with the operands
/// exchanged.
struct Codes {
    block: Code,
    number: Code,
    reversed_block: Code,
    reversed_number: Code,
}

fn binary_codes(op: Binary) -> Codes {
    use Code::*;
    let (block, number, reversed_block, reversed_number) = match op {
        Binary::Add => (AddB, AddN, AddB, AddN),
        Binary::Sub => (SubB, SubN, RsubB, RsubN),
        Binary::Mul => (MulB, MulN, MulB, MulN),
        Binary::Div => (DivB, DivN, RdivB, RdivN),
        Binary::Min => (MinB, MinN, MinB, MinN),
        Binary::Max => (MaxB, MaxN, MaxB, MaxN),
        Binary::Compare(Comparison::Lt) => (LtB, LtN, GtB, GtN),
        Binary::Compare(Comparison::Le) => (LeB, LeN, GeB, GeN),
        Binary::Compare(Comparison::Eq) => (EqB, EqN, EqB, EqN),
        Binary::Compare(Comparison::Ne) => (NeB, NeN, NeB, NeN),
        Binary::CopySign => (CopySignB, CopySignN, RcopySignB, RcopySignN),
    };
    Codes {
        block,
        number,
        reversed_block,
        reversed_number,
    }
}

fn unary_code(op: Unary) -> Code {
    match op {
        Unary::Neg => Code::Neg,
        Unary::Abs => Code::Abs,
        Unary::Sqrt => Code::Sqrt,
        Unary::Exp2 => Code::Exp2,
        Unary::Log2 => Code::Log2,
        Unary::Round(Rounding::HalfEven) => Code::Nearest,
        Unary::Round(Rounding::HalfAway) => Code::HalfAway,
        Unary::Round(Rounding::Floor) => Code::Floor,
        Unary::Round(Rounding::Ceil) => Code::Ceil,
        Unary::Round(Rounding::Trunc) => Code::Trunc,
        Unary::IsFinite => Code::IsFinite,
        Unary::Cast(DType::BF16, false) => Code::ToBf16,
        Unary::Cast(DType::BF16, true) => Code::ToBf16Saturating,
        Unary::Cast(DType::F16, false) => Code::ToF16,
        Unary::Cast(DType::F16, true) => Code::ToF16Saturating,
        Unary::Cast(DType::F8E4M3, false) => Code::ToE4m3,
        Unary::Cast(DType::F8E4M3, true) => Code::ToE4m3Saturating,
        Unary::Cast(DType::F8E5M2, false) => Code::ToE5m2,
        // The graph holds casts through narrow float dtypes only.
        Unary::Cast(..) => Code::ToE5m2Saturating,
    }
}
