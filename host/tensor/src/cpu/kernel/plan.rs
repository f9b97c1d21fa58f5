//! From a graph to sweeps over the tensor, each a few routines of the machine.
//!
//! Reductions split the work. Those over local groups split a tile into phases: the elements up to the reduction, then the
//! numbers per group, then the elements after it. All others end a sweep: their results are known only when the whole
//! tensor has been seen. What a later phase or sweep needs again is computed again from the inputs, unless that is dear.

use std::collections::BTreeSet;

use super::{
    emit::{self, Routine},
    geometry::Geometry,
    graph::{Domain, Extent, Form, Graph, Id, Node},
    machine::{Code, PlaceId, Step},
};
use crate::program::{Program, Statistic};

/// What an operand's memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceKind {
    /// Elements of an input.
    Input(u8),
    /// Elements of the result.
    Output,
    /// A value of the current block.
    Block,
    /// A value of every element of the tile.
    Elements(Id),
    /// A value of every group of the tile.
    Groups(Id),
    /// The same, once for each vector.
    Numbers(Id),
    /// Reciprocals of a value, once for each vector.
    Reciprocals(Id),
    /// A value of the whole tensor.
    Whole(Id),
    /// The reciprocal of a value of the whole tensor.
    WholeReciprocal(Id),
    /// A value of every column.
    Columns(Id),
}

/// What a reduction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gives {
    /// A value that the program goes on with.
    Value(Id),
    /// The measure with this index.
    Measure(usize),
}

/// One reduction of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reduction {
    pub gives: Gives,
    pub statistic: Statistic,
    pub extent: Extent,
    /// Class of the groups, for groups.
    pub class: Option<usize>,
    /// Whether its result is known at the end of each tile.
    pub local: bool,
}

/// The numbers of one class before a phase.
#[derive(Debug)]
pub(super) struct GroupRoutine {
    pub class: usize,
    pub routine: Routine,
    /// Values to repeat for each vector: from a place of groups to one of numbers.
    pub spread: Vec<(PlaceId, PlaceId)>,
    /// The same for reciprocals.
    pub invert: Vec<(PlaceId, PlaceId)>,
}

/// Part of a sweep between two reductions over local groups.
#[derive(Debug, Default)]
pub(super) struct Phase {
    pub groups: Vec<GroupRoutine>,
    pub elements: Routine,
    /// Local reductions that end with this phase: index among the sweep's, place of the result.
    pub finish: Vec<(usize, PlaceId)>,
    /// The input, where all that the phase does is to find the largest magnitude of groups of a bf16 input.
    pub magnitudes: Option<PlaceId>,
}

/// One pass over the tensor.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pub places: Vec<PlaceKind>,
    pub reductions: Vec<Reduction>,
    /// Values of elements that a phase has written for later ones.
    pub written: BTreeSet<Id>,
    pub phases: Vec<Phase>,
}

impl Sweep {
    /// The place of a kind, made on first use.
    pub(super) fn place(&mut self, kind: PlaceKind) -> PlaceId {
        let known = match kind {
            PlaceKind::Block => None,
            _ => self.places.iter().position(|other| *other == kind),
        };
        let index = known.unwrap_or_else(|| {
            self.places.push(kind);
            self.places.len() - 1
        });
        // At most a few places for each of at most 256 operations.
        index as PlaceId
    }
}

/// A compiled program.
#[derive(Debug)]
pub(super) struct Plan {
    pub form: Form,
    pub graph: Graph,
    pub geometry: Geometry,
    pub sweeps: Vec<Sweep>,
}

impl Plan {
    /// Compiles `program` for tensors of `form`, which has at least one element.
    pub(super) fn new(program: &Program, form: Form) -> Self {
        let graph = Graph::new(program, &form);
        let reachable = reachable(&graph);
        let mut lengths = Vec::new();
        let mut by_column = false;
        for id in reachable.iter().copied() {
            match graph.node(id) {
                Node::Reduce(_, Extent::Group(length), _) if !lengths.contains(&length) => {
                    lengths.push(length)
                }
                Node::Reduce(_, Extent::Column, _) => by_column = true,
                _ => {}
            }
        }
        let geometry = Geometry::new(form.rows, form.columns, &lengths, by_column);
        let order = Order::new(&graph, &geometry, &reachable);
        let last = graph.wanted().map(|id| order.sweep[id]).max().unwrap_or(0);
        let sweeps = (0..=last)
            .map(|sweep| {
                let stage = Stage {
                    number: sweep,
                    last: sweep == last,
                };
                plan_sweep(&graph, &form, &geometry, &order, &reachable, stage)
            })
            .collect();
        Plan {
            form,
            graph,
            geometry,
            sweeps,
        }
    }

    /// Class of the groups over which a value is the same.
    pub(super) fn class_of(&self, id: Id) -> Option<usize> {
        match self.graph.domain(id) {
            Domain::Group(length) => class_of(&self.geometry, Extent::Group(length)),
            Domain::Whole | Domain::Element => None,
        }
    }
}

/// The values that the result and the measures depend on, operands first.
fn reachable(graph: &Graph) -> Vec<Id> {
    let mut needed = vec![false; graph.len()];
    graph.wanted().for_each(|id| needed[id] = true);
    for id in (0..graph.len()).rev() {
        if needed[id] {
            graph
                .node(id)
                .operands()
                .for_each(|operand| needed[operand] = true);
        }
    }
    (0..graph.len()).filter(|&id| needed[id]).collect()
}

/// When each value is known at the earliest.
#[derive(Debug)]
pub(super) struct Order {
    sweep: Vec<usize>,
    /// Phase within a sweep. Results of earlier sweeps are known before phase 0.
    pub phase: Vec<usize>,
    /// Whether the value is a reduction whose result comes from an earlier sweep.
    pub global: Vec<bool>,
}

impl Order {
    fn new(graph: &Graph, geometry: &Geometry, reachable: &[Id]) -> Self {
        let mut order = Order {
            sweep: vec![0; graph.len()],
            phase: vec![0; graph.len()],
            global: vec![false; graph.len()],
        };
        for &id in reachable {
            let node = graph.node(id);
            let sweep = node
                .operands()
                .map(|operand| order.sweep[operand])
                .max()
                .unwrap_or(0);
            let phase = node
                .operands()
                .map(|operand| order.phase[operand])
                .max()
                .unwrap_or(0);
            (order.sweep[id], order.phase[id]) = match node {
                Node::Reduce(_, extent, _) if is_local(geometry, extent) => (sweep, phase + 1),
                Node::Reduce(..) => {
                    order.global[id] = true;
                    (sweep + 1, 0)
                }
                _ => (sweep, phase),
            };
        }
        order
    }
}

fn is_local(geometry: &Geometry, extent: Extent) -> bool {
    class_of(geometry, extent).is_some_and(|class| geometry.classes[class].local)
}

/// Class of the groups of a reduction.
fn class_of(geometry: &Geometry, extent: Extent) -> Option<usize> {
    match extent {
        Extent::Group(length) => geometry
            .classes
            .iter()
            .position(|class| class.length == length),
        Extent::Column | Extent::Whole => None,
    }
}

/// What a routine over elements ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    /// A reduction of a value, by its index among the sweep's.
    Reduce(usize, Id),
    Store(Id),
}

impl Sink {
    pub(super) fn value(&self) -> Id {
        match *self {
            Sink::Reduce(_, id) | Sink::Store(id) => id,
        }
    }
}

/// Which of the sweeps is planned.
#[derive(Debug, Clone, Copy)]
struct Stage {
    number: usize,
    last: bool,
}

fn plan_sweep(
    graph: &Graph,
    form: &Form,
    geometry: &Geometry,
    order: &Order,
    reachable: &[Id],
    stage: Stage,
) -> Sweep {
    let mut sweep = Sweep::default();
    // What the sweep is for: results that later sweeps need, or the measures and the result itself.
    let mut needed = vec![false; graph.len()];
    let mut sinks: Vec<(usize, Sink)> = Vec::new();
    let reduction = |sweep: &mut Sweep, gives, statistic, extent, local| {
        sweep.reductions.push(Reduction {
            gives,
            statistic,
            extent,
            class: class_of(geometry, extent),
            local,
        });
        sweep.reductions.len() - 1
    };
    for &id in reachable {
        if let Node::Reduce(statistic, extent, operand) = graph.node(id)
            && order.global[id]
            && order.sweep[operand] == stage.number
        {
            let index = reduction(&mut sweep, Gives::Value(id), statistic, extent, false);
            sinks.push((order.phase[operand], Sink::Reduce(index, operand)));
            needed[operand] = true;
        }
    }
    if stage.last {
        for (measure, &(statistic, id)) in graph.measures().iter().enumerate() {
            let gives = Gives::Measure(measure);
            let index = reduction(&mut sweep, gives, statistic, Extent::Whole, false);
            sinks.push((order.phase[id], Sink::Reduce(index, id)));
            needed[id] = true;
        }
        if let Some(id) = graph.result() {
            sinks.push((order.phase[id], Sink::Store(id)));
            needed[id] = true;
        }
    }
    // What those need, back to the inputs and to results of earlier sweeps; values of the whole tensor are known before
    // the sweep. Reductions over local groups are made in the sweep itself.
    for id in (0..graph.len()).rev() {
        if !needed[id] || order.global[id] || graph.domain(id) == Domain::Whole {
            continue;
        }
        graph
            .node(id)
            .operands()
            .for_each(|operand| needed[operand] = true);
        if let Node::Reduce(statistic, extent, operand) = graph.node(id) {
            let index = reduction(&mut sweep, Gives::Value(id), statistic, extent, true);
            sinks.push((order.phase[operand], Sink::Reduce(index, operand)));
        }
    }
    // Storing may leave the accumulator half rounded, so it comes last in its phase.
    sinks.sort_by_key(|(_, sink)| matches!(sink, Sink::Store(_)));
    let phases = sinks.iter().map(|(phase, _)| phase + 1).max().unwrap_or(0);
    let by_phase: Vec<Vec<Sink>> = (0..phases)
        .map(|phase| {
            sinks
                .iter()
                .filter(|(at, _)| *at == phase)
                .map(|(_, sink)| *sink)
                .collect()
        })
        .collect();
    let kept = emit::kept(graph, &by_phase);
    let elements: Vec<Routine> = by_phase
        .iter()
        .map(|sinks| emit::elements(graph, form, &mut sweep, sinks, &kept))
        .collect();
    let known = emit::Known {
        graph,
        form,
        order,
        needed: &needed,
    };
    for (phase, elements) in elements.into_iter().enumerate() {
        let groups = (0..geometry.classes.len())
            .filter_map(|class| {
                let length = geometry.classes[class].length;
                emit::groups(&known, &mut sweep, class, length, phase)
            })
            .collect();
        let finish = by_phase[phase]
            .iter()
            .filter_map(|sink| match *sink {
                Sink::Reduce(index, _) => match sweep.reductions[index] {
                    Reduction {
                        local: true,
                        gives: Gives::Value(id),
                        ..
                    } => Some((index, PlaceKind::Groups(id))),
                    _ => None,
                },
                Sink::Store(_) => None,
            })
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(index, kind)| (index, sweep.place(kind)))
            .collect();
        let magnitudes = match elements.steps[..] {
            [
                Step {
                    code: Code::LoadBf16,
                    a,
                    ..
                },
                Step {
                    code: Code::ReduceAbsMax,
                    ..
                },
            ] => Some(a),
            _ => None,
        };
        sweep.phases.push(Phase {
            magnitudes,
            groups,
            elements,
            finish,
        });
    }
    sweep
}
