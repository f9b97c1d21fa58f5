//! Drives a plan over a tensor: sweeps one after another, pieces of a sweep in parallel, tiles of a piece in order.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{
    engine::Engine,
    geometry::Geometry,
    graph::{self, Domain, Extent, Id, Node, Stored},
    lanes::LANES,
    plan::{Gives, Plan, Reduction, Sweep},
    worker::Worker,
};
use crate::{
    Tensor, cast,
    program::{Statistic, scalar},
};

/// Results of finished sweeps: one number per group or column, or one.
pub(super) type Globals = BTreeMap<Id, Vec<f32>>;

/// Accumulators: sixteen lanes per group, or one per column. Only one of the two is in use.
#[derive(Debug, Default, Clone)]
pub(super) struct Accumulators {
    /// For extremes.
    pub single: Vec<[f32; LANES]>,
    /// For sums.
    pub double: Vec<[f64; LANES]>,
}

impl Accumulators {
    /// Neutral accumulators for `count` groups.
    pub(super) fn new(statistic: Statistic, count: usize) -> Self {
        let mut accumulators = Self::default();
        accumulators.reset(statistic, count);
        accumulators
    }

    /// Makes the first `count` neutral.
    pub(super) fn reset(&mut self, statistic: Statistic, count: usize) {
        match neutral(statistic) {
            Some(neutral) => {
                self.single.clear();
                self.single.resize(count, [neutral; LANES]);
            }
            None => {
                self.double.clear();
                self.double.resize(count, [0.0; LANES]);
            }
        }
    }

    pub(super) fn base(&mut self, statistic: Statistic) -> *mut u8 {
        match neutral(statistic) {
            Some(_) => self.single.as_mut_ptr().cast(),
            None => self.double.as_mut_ptr().cast(),
        }
    }

    /// Joins `other` into the accumulators from `first` on.
    fn join(&mut self, statistic: Statistic, first: usize, other: &Self) {
        for (mine, theirs) in self.single.iter_mut().skip(first).zip(&other.single) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine = extreme(statistic, *mine, *theirs);
            }
        }
        for (mine, theirs) in self.double.iter_mut().skip(first).zip(&other.double) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += theirs;
            }
        }
    }

    /// The statistic of group `group`, which has `members` elements.
    pub(super) fn across(&self, statistic: Statistic, group: usize, members: usize) -> f32 {
        match neutral(statistic) {
            Some(neutral) => cast::canonical(
                self.single[group]
                    .iter()
                    .fold(neutral, |joined, &lane| extreme(statistic, joined, lane)),
            ),
            None => finish_sum(statistic, self.double[group].iter().sum(), members) as f32,
        }
    }

    /// The measure of all `members` elements, which share the first accumulators.
    fn measure(&self, statistic: Statistic, members: usize) -> f64 {
        let measure = match neutral(statistic) {
            Some(_) => self.across(statistic, 0, members).into(),
            None => finish_sum(statistic, self.double[0].iter().sum(), members),
        };
        if measure.is_nan() { f64::NAN } else { measure }
    }

    /// The statistic of each of `columns` columns of `rows` elements, followed by a vector of zeros to read past the end.
    fn columns(&self, statistic: Statistic, columns: usize, rows: usize) -> Vec<f32> {
        let mut results: Vec<f32> = match neutral(statistic) {
            Some(_) => self
                .single
                .iter()
                .flatten()
                .take(columns)
                .map(|&x| cast::canonical(x))
                .collect(),
            None => self
                .double
                .iter()
                .flatten()
                .take(columns)
                .map(|&x| finish_sum(statistic, x, rows) as f32)
                .collect(),
        };
        results.resize(columns + LANES, 0.0);
        results
    }
}

/// The neutral element of an extreme; none for sums.
pub(super) fn neutral(statistic: Statistic) -> Option<f32> {
    match statistic {
        Statistic::Max => Some(f32::NEG_INFINITY),
        Statistic::Min => Some(f32::INFINITY),
        Statistic::AbsMax => Some(0.0),
        Statistic::Sum | Statistic::Mean | Statistic::SumOfSquares => None,
    }
}

fn extreme(statistic: Statistic, a: f32, b: f32) -> f32 {
    match statistic {
        Statistic::Min => scalar::min(a, b),
        // Accumulators of absolute maxima hold magnitudes.
        _ => scalar::max(a, b),
    }
}

fn finish_sum(statistic: Statistic, sum: f64, members: usize) -> f64 {
    if statistic == Statistic::Mean {
        sum / members as f64
    } else {
        sum
    }
}

/// Values of the whole tensor that are known before a sweep, by id.
fn whole_values(plan: &Plan, globals: &Globals, scalars: &[f32]) -> Vec<Option<f32>> {
    let mut values: Vec<Option<f32>> = vec![None; plan.graph.len()];
    for id in 0..plan.graph.len() {
        if plan.graph.domain(id) != Domain::Whole {
            continue;
        }
        let at = |operand: Id| values[operand];
        values[id] = match plan.graph.node(id) {
            Node::Scalar(index) => Some(cast::canonical(scalars[usize::from(index)])),
            Node::Constant(bits) => Some(f32::from_bits(bits)),
            Node::Reduce(..) => globals.get(&id).map(|results| results[0]),
            Node::Unary(op, a) => at(a).map(|a| graph::apply_unary(op, a)),
            Node::Binary(op, a, b) => at(a).zip(at(b)).map(|(a, b)| graph::apply_binary(op, a, b)),
            Node::Select(condition, yes, no) => {
                at(condition).and_then(|c| if c != 0.0 { at(yes) } else { at(no) })
            }
            // Inputs and divisions of elements have other domains.
            Node::Input(_) | Node::DivideBf16(..) => None,
        };
    }
    values
}

/// Runs `plan` over `inputs`, into `output` where the plan stores its result. Returns the measures.
pub(super) fn run(
    plan: &Plan,
    engine: &Engine,
    inputs: &[&Tensor],
    scalars: &[f32],
    mut output: Option<&mut [u8]>,
) -> Vec<f64> {
    let mut results = Results {
        globals: Globals::new(),
        measures: vec![0.0; plan.graph.measures().len()],
    };
    for (number, sweep) in plan.sweeps.iter().enumerate() {
        let globals = &results.globals;
        let whole = whole_values(plan, globals, scalars);
        let context = Context {
            plan,
            sweep,
            engine,
            inputs,
            whole: &whole,
            globals,
        };
        // Only the last sweep stores the result.
        let is_last = number + 1 == plan.sweeps.len();
        let target = plan.form.stored.zip(output.take_if(|_| is_last));
        let partial: Vec<Vec<Partial>> = pieces_of(&plan.geometry, target)
            .into_par_iter()
            .enumerate()
            .map_init(
                || Worker::new(&context),
                |worker, (piece, bytes)| worker.piece(&context, piece, bytes),
            )
            .collect();
        results.join(plan, sweep, &partial);
    }
    results.measures
}

/// Each piece, with its bytes of the result where the sweep stores it.
fn pieces_of<'a>(
    geometry: &Geometry,
    target: Option<(Stored, &'a mut [u8])>,
) -> Vec<Option<&'a mut [u8]>> {
    let Some((stored, mut output)) = target else {
        return (0..geometry.pieces()).map(|_| None).collect();
    };
    (0..geometry.pieces())
        .map(|piece| {
            let len = geometry.elements(piece).len() * stored.dtype.size();
            let (bytes, rest) = std::mem::take(&mut output).split_at_mut(len);
            output = rest;
            Some(bytes)
        })
        .collect()
}

/// What all workers of a sweep share.
pub(super) struct Context<'a> {
    pub plan: &'a Plan,
    pub sweep: &'a Sweep,
    pub engine: &'a Engine,
    pub inputs: &'a [&'a Tensor],
    pub whole: &'a [Option<f32>],
    pub globals: &'a Globals,
}

/// Accumulators of one reduction after one piece, and the first group that they stand for.
pub(super) struct Partial {
    pub reduction: usize,
    pub first: usize,
    pub accumulators: Accumulators,
}

/// What sweeps have found.
struct Results {
    globals: Globals,
    measures: Vec<f64>,
}

impl Results {
    /// Joins the partial results of a sweep in the order of the pieces.
    fn join(&mut self, plan: &Plan, sweep: &Sweep, pieces: &[Vec<Partial>]) {
        let (geometry, rows, columns) = (&plan.geometry, plan.form.rows, plan.form.columns);
        let reductions = sweep.reductions.iter().enumerate();
        for (index, reduction) in reductions.filter(|(_, r)| !r.local) {
            let Reduction {
                gives,
                statistic,
                extent,
                class,
                ..
            } = *reduction;
            let count = match (extent, class) {
                (Extent::Column, _) => columns.div_ceil(LANES) + 1,
                (_, Some(class)) => geometry.all_groups(class),
                _ => 1,
            };
            let mut joined = Accumulators::new(statistic, count);
            for partial in pieces
                .iter()
                .flatten()
                .filter(|partial| partial.reduction == index)
            {
                joined.join(statistic, partial.first, &partial.accumulators);
            }
            let id = match gives {
                Gives::Measure(measure) => {
                    self.measures[measure] = joined.measure(statistic, rows * columns);
                    continue;
                }
                Gives::Value(id) => id,
            };
            let values = match (extent, class) {
                (Extent::Column, _) => joined.columns(statistic, columns, rows),
                (_, Some(class)) => (0..count)
                    .map(|group| joined.across(statistic, group, geometry.members(class, group)))
                    .collect(),
                _ => vec![joined.across(statistic, 0, rows * columns)],
            };
            self.globals.insert(id, values);
        }
    }
}
