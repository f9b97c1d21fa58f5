//! How much working memory a plan takes, and the limits that it must keep.
//!
//! A program of a plugin may be hostile. Scratch grows with the number of values that are kept, and many fold where groups
//! are short and of lengths without a common divisor, because then hardly a vector is full; results of groups that no tile
//! holds take memory for the whole tensor. Programs that mean something need a few hundred kilobytes a thread.

use super::{
    geometry::Geometry,
    graph::Extent,
    lanes::LANES,
    plan::{Plan, Reduction, Sweep},
    worker,
};
use crate::{Error, Result, program::Statistic};

/// Most bytes of scratch that each thread may take.
const PER_THREAD: u64 = 64 << 20;
/// Most bytes that the results of reductions over the whole tensor may take, unfinished ones included.
const SHARED: u64 = 256 << 20;

/// Working memory of a plan, in bytes; upper bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Scratch of one thread.
    pub per_thread: u64,
    /// Accumulators and results that go from one sweep to the next.
    pub shared: u64,
}

impl Memory {
    /// What `plan` takes.
    pub(super) fn of(plan: &Plan) -> Self {
        let most = |bytes: &dyn Fn(&Sweep) -> u64| plan.sweeps.iter().map(bytes).max().unwrap_or(0);
        let results: u64 = plan
            .sweeps
            .iter()
            .flat_map(|sweep| &sweep.reductions)
            .map(|reduction| count(plan, reduction) * size_of::<f32>() as u64)
            .sum();
        Self {
            per_thread: most(&|sweep| scratch(plan, sweep)),
            shared: results + most(&|sweep| accumulators(plan, sweep)),
        }
    }

    /// Refuses what is over a limit.
    pub(super) fn check(self, plan: &Plan) -> Result<()> {
        let within = |what, needed, limit| match needed > limit {
            true => Err(Error::Memory {
                what,
                rows: plan.form.rows,
                columns: plan.form.columns,
                needed,
                limit,
            }),
            false => Ok(()),
        };
        within("of scratch per thread", self.per_thread, PER_THREAD)?;
        within("for the results of reductions", self.shared, SHARED)
    }
}

/// Scratch of one thread in one sweep: what `Worker` allocates, and its map of a tile.
fn scratch(plan: &Plan, sweep: &Sweep) -> u64 {
    let geometry = &plan.geometry;
    let places: usize = sweep
        .places
        .iter()
        .map(|&kind| worker::layout(plan, kind).bytes)
        .sum();
    let local = sweep.reductions.iter().filter(|reduction| reduction.local);
    let groups = local.map(|reduction| {
        let count = reduction
            .class
            .map_or(1, |class| geometry.most_groups(class));
        count as u64 * accumulator(reduction.statistic)
    });
    places as u64 + groups.sum::<u64>() + map(geometry)
}

/// A tile's map: lanes, column and segment of each vector and its group in each class. Its lists grow by doubling.
fn map(geometry: &Geometry) -> u64 {
    let per_vector = size_of::<u8>()
        + size_of::<u32>()
        + size_of::<(usize, usize, usize)>()
        + size_of::<u32>() * geometry.classes.len();
    let zeros = size_of::<u32>();
    (geometry.most_vectors() * (2 * per_vector + zeros)) as u64
}

/// Accumulators of the reductions of one sweep that go over more than a tile: those of every piece, and joined.
fn accumulators(plan: &Plan, sweep: &Sweep) -> u64 {
    let pieces = plan.geometry.pieces() as u64;
    let over_tiles = sweep.reductions.iter().filter(|reduction| !reduction.local);
    over_tiles
        .map(|reduction| {
            let count = count(plan, reduction).div_ceil(match reduction.extent {
                Extent::Column => LANES as u64,
                _ => 1,
            });
            let partial = match reduction.extent {
                // Every piece has all columns, and one vector to read past the end.
                Extent::Column => (count + 1) * pieces,
                // Pieces may share a group at their border.
                _ => count + pieces,
            };
            (partial + count) * accumulator(reduction.statistic)
        })
        .sum()
}

/// Results of a reduction over more than a tile; none of others.
fn count(plan: &Plan, reduction: &Reduction) -> u64 {
    let count = match (reduction.extent, reduction.class) {
        _ if reduction.local => 0,
        (Extent::Column, _) => plan.form.columns + LANES,
        (_, Some(class)) => plan.geometry.all_groups(class),
        _ => 1,
    };
    count as u64
}

/// Bytes of one accumulator, a lane for each of a vector.
fn accumulator(statistic: Statistic) -> u64 {
    let lane = match statistic {
        Statistic::Sum | Statistic::Mean | Statistic::SumOfSquares => size_of::<f64>(),
        Statistic::Max | Statistic::Min | Statistic::AbsMax => size_of::<f32>(),
    };
    (LANES * lane) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        DType, Tensor,
        cpu::kernel::{
            engine::{Engine, Level},
            graph::{Form, Stored},
            run::{Clock, Context, Globals},
            worker::Worker,
        },
        program::{Op, Program, Span},
    };

    /// `reductions` sums over groups of the given lengths in turn, each of another value, and the sum of all of them.
    fn program(lengths: &[u32], reductions: usize) -> Program {
        let mut ops = vec![Op::Constant(0.0)];
        for index in 0..reductions {
            let length = lengths[index % lengths.len()];
            ops.extend([
                Op::Input(0),
                Op::Constant(index as f32 + 2.0),
                Op::Mul,
                Op::Reduce(Statistic::Sum, Span::Group(length)),
                Op::Add,
            ]);
        }
        Program::check(&ops).unwrap()
    }

    fn plan(program: &Program, rows: usize, columns: usize) -> Plan {
        let form = Form {
            rows,
            columns,
            inputs: vec![DType::BF16],
            stored: Some(Stored {
                dtype: DType::BF16,
                saturate: false,
            }),
        };
        Plan::new(program, form)
    }

    /// The estimate holds, and is no more than some times what a worker takes.
    #[test]
    fn scratch_is_within_its_estimate() {
        let lengths: [&[u32]; 6] = [&[128], &[1], &[7, 65_536], &[7, 8], &[2, 65_536], &[24, 36]];
        for lengths in lengths {
            for (rows, columns) in [(3, 65_536), (5, 1000), (40, 256), (2, 70_000)] {
                let program = program(lengths, 6);
                let plan = plan(&program, rows, columns);
                let estimate = Memory::of(&plan).per_thread as usize;
                let tensor = Tensor::zeros(DType::BF16, [rows, columns]).unwrap();
                let engine = Engine::new(Level::Portable);
                let clock = Clock::new(None);
                let sweep = plan.sweeps.first().unwrap();
                let context = Context {
                    plan: &plan,
                    sweep,
                    engine: &engine,
                    clock: &clock,
                    inputs: &[&tensor],
                    whole: &vec![None; plan.graph.len()],
                    globals: &Globals::new(),
                };
                let mut worker = Worker::new(&context);
                let last = plan.sweeps.len() == 1;
                let mut output = vec![
                    0;
                    if last {
                        plan.geometry.elements(0).len() * 2
                    } else {
                        0
                    }
                ];
                worker.piece(&context, 0, last.then_some(&mut output[..]));
                let taken = worker.bytes();
                assert!(
                    taken <= estimate,
                    "{lengths:?} on {rows} x {columns}: {taken} of {estimate}"
                );
            }
        }
    }

    #[test]
    fn hostile_programs_are_refused_and_ordinary_ones_are_not() {
        let refusal = |lengths: &[u32], reductions, rows, columns| {
            let plan = plan(&program(lengths, reductions), rows, columns);
            Memory::of(&plan).check(&plan).map_err(|error| match error {
                Error::Memory { what, .. } => what,
                other => panic!("{other}"),
            })
        };
        let scratch = "of scratch per thread";
        assert_eq!(refusal(&[2, 65_536], 50, 4, 65_536), Err(scratch));
        assert_eq!(refusal(&[3, 65_536], 50, 4, 65_536), Err(scratch));
        // Lengths whose common multiple no tile holds: one after the other they are reduced over the whole tensor.
        let coprime = [251, 241, 239, 7, 5, 3];
        let results = "for the results of reductions";
        assert_eq!(refusal(&coprime, 50, 1 << 12, 1 << 16), Err(results));
        assert_eq!(refusal(&coprime, 50, 4, 1 << 12), Ok(()));
        for lengths in [&[32_u32, 128][..], &[128, 65_536], &[100], &[1]] {
            assert_eq!(refusal(lengths, 4, 1 << 16, 1 << 16), Ok(()), "{lengths:?}");
        }
    }
}
