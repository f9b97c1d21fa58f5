//! One thread's scratch memory, and the walk over the tiles of a piece.

use super::{
    emit::Routine,
    geometry::Map,
    graph::Extent,
    lanes::LANES,
    machine::{BLOCK, Lanewise, Place, Tile},
    plan::{GroupRoutine, Phase, PlaceKind},
    run::{Accumulators, Context, Partial, neutral},
};
use crate::{DType, buffer::Buffer, program::Statistic};

/// Bytes of a vector of f32.
const VECTOR: usize = LANES * size_of::<f32>();

/// Bytes from which on a result goes past the caches: it would not stay there anyway, and a cache line that is written
/// whole need not be read first, which is a third of the traffic.
const STREAMED: usize = 8 << 20;

/// Scratch memory for one sweep, reused from tile to tile.
pub(super) struct Worker {
    /// Memory behind each place of the sweep; staging for inputs and the result.
    memory: Vec<Buffer>,
    places: Vec<Place>,
    dtypes: Vec<DType>,
    /// Accumulators of each reduction.
    accumulators: Vec<Accumulators>,
    lanewise: Vec<Lanewise>,
    map: Map,
    /// The groups of reductions over the whole tensor: all the first.
    zeros: Vec<u32>,
    /// Whether a divisor of the whole tensor needs true divisions.
    whole_exact: bool,
    /// Whether this tile's result goes past the caches.
    stream: bool,
}

// SAFETY: the pointers lead into the worker's own buffers, which move with it (their heap memory stays where it is), or are
// set anew for each tile before they are used.
unsafe impl Send for Worker {}

impl Worker {
    pub(super) fn new(context: &Context<'_>) -> Self {
        let (plan, sweep) = (context.plan, context.sweep);
        let vectors = plan.geometry.most_vectors();
        let mut whole_exact = false;
        let mut memory = Vec::new();
        let mut places = Vec::new();
        let mut dtypes = Vec::new();
        for &kind in &sweep.places {
            let mut dtype = DType::F32;
            let block = BLOCK * VECTOR;
            let number = size_of::<f32>();
            let (bytes, advance) = match kind {
                PlaceKind::Input(index) => {
                    dtype = plan.form.inputs[usize::from(index)];
                    (vectors * LANES * dtype.size(), LANES * dtype.size())
                }
                PlaceKind::Output => {
                    dtype = plan.form.stored.map_or(DType::F32, |stored| stored.dtype);
                    (vectors * LANES * dtype.size(), LANES * dtype.size())
                }
                PlaceKind::Block => (block, 0),
                PlaceKind::Elements(_) => (vectors * VECTOR, VECTOR),
                PlaceKind::Groups(id) => {
                    let class = plan.class_of(id);
                    let groups = class.map_or(0, |class| plan.geometry.most_groups(class));
                    (groups.next_multiple_of(BLOCK * LANES) * number, VECTOR)
                }
                PlaceKind::Numbers(_) | PlaceKind::Reciprocals(_) => (vectors * number, number),
                PlaceKind::Whole(_) | PlaceKind::WholeReciprocal(_) => (BLOCK * number, 0),
                PlaceKind::Columns(_) => (0, 0),
            };
            let mut buffer = Buffer::zeroed(bytes);
            let mut base = buffer.as_mut().as_mut_ptr();
            match kind {
                PlaceKind::Whole(id) => fill(&mut buffer, context.whole[id].unwrap_or(f32::NAN)),
                PlaceKind::WholeReciprocal(id) => {
                    let divisor = context.whole[id].unwrap_or(f32::NAN);
                    whole_exact |= !reciprocal_is_exact(divisor);
                    fill(&mut buffer, 1.0 / divisor);
                }
                // Read only, so the shared memory is never written through this pointer.
                PlaceKind::Columns(id) => base = context.globals[&id].as_ptr().cast_mut().cast(),
                _ => {}
            }
            memory.push(buffer);
            places.push(Place { base, advance });
            dtypes.push(dtype);
        }
        let count = sweep.reductions.len();
        Worker {
            memory,
            places,
            dtypes,
            accumulators: vec![Accumulators::default(); count],
            lanewise: vec![
                Lanewise {
                    base: std::ptr::null_mut(),
                    groups: std::ptr::null()
                };
                count
            ],
            map: Map::default(),
            zeros: vec![0; vectors],
            whole_exact,
            stream: false,
        }
    }

    /// Runs the sweep over the tiles of a piece, whose bytes of the result are `output` where the sweep stores it. Returns
    /// the accumulators of reductions that go on in other pieces.
    pub(super) fn piece(
        &mut self,
        context: &Context<'_>,
        piece: usize,
        mut output: Option<&mut [u8]>,
    ) -> Vec<Partial> {
        let geometry = &context.plan.geometry;
        let elements = geometry.elements(piece);
        let mut firsts = Vec::new();
        for (index, reduction) in context.sweep.reductions.iter().enumerate() {
            let (first, count) = match (reduction.extent, reduction.class) {
                _ if reduction.local => (0, 0),
                (Extent::Column, _) => (0, context.plan.form.columns.div_ceil(LANES) + 1),
                (_, Some(class)) => {
                    let first = geometry.group(class, elements.start);
                    (first, geometry.group(class, elements.end - 1) - first + 1)
                }
                _ => (0, 1),
            };
            firsts.push(first);
            self.accumulators[index].reset(reduction.statistic, count);
        }
        let mut streamed = false;
        for tile in geometry.piece(piece) {
            geometry.map(tile, &mut self.map);
            self.stage(context);
            if let (Some(output), Some(stored)) = (output.as_deref_mut(), context.plan.form.stored)
            {
                let size = stored.dtype.size();
                let from = (self.map.start - elements.start) * size;
                let bytes = &mut output[from..from + self.map.len * size];
                self.aim(context, PlaceKind::Output, bytes.as_mut_ptr());
                streamed |= self.stream;
                self.tile(context, &firsts);
                self.unstage(context, bytes);
            } else {
                self.tile(context, &firsts);
            }
        }
        #[cfg(target_arch = "x86_64")]
        if streamed {
            // What went past the caches is ordered for other threads by this alone.
            // SAFETY: every x86-64 has the instruction.
            unsafe { std::arch::x86_64::_mm_sfence() };
        }
        let reductions = context.sweep.reductions.iter().enumerate();
        reductions
            .filter(|(_, reduction)| !reduction.local)
            .map(|(index, _)| Partial {
                reduction: index,
                first: firsts[index],
                accumulators: std::mem::take(&mut self.accumulators[index]),
            })
            .collect()
    }

    /// Points the inputs at the tile: in the tensor itself where it is laid out as the machine wants it, else at a copy.
    fn stage(&mut self, context: &Context<'_>) {
        for (index, kind) in context.sweep.places.iter().enumerate() {
            let &PlaceKind::Input(input) = kind else {
                continue;
            };
            let size = self.dtypes[index].size();
            let from = self.map.start * size;
            let bytes =
                &context.inputs[usize::from(input)].bytes()[from..from + self.map.len * size];
            self.places[index].base = if self.map.partial {
                let staging = self.memory[index].as_mut();
                for &(offset, vector, len) in &self.map.segments {
                    let at = vector * LANES * size;
                    staging[at..at + len * size]
                        .copy_from_slice(&bytes[offset * size..(offset + len) * size]);
                }
                staging.as_mut_ptr()
            } else {
                // Inputs are read only.
                bytes.as_ptr().cast_mut()
            };
        }
    }

    /// Points the result at `direct`, or at staging memory.
    fn aim(&mut self, context: &Context<'_>, kind: PlaceKind, direct: *mut u8) {
        let form = &context.plan.form;
        let size = form.stored.map_or(0, |stored| stored.dtype.size());
        let large = form.rows * form.columns * size >= STREAMED;
        self.stream = large && !self.map.partial && direct.addr().is_multiple_of(64);
        for index in 0..self.places.len() {
            if context.sweep.places[index] == kind {
                let staging = self.memory[index].as_mut().as_mut_ptr();
                self.places[index].base = if self.map.partial { staging } else { direct };
            }
        }
    }

    /// Copies the result out of staging memory.
    fn unstage(&mut self, context: &Context<'_>, bytes: &mut [u8]) {
        if !self.map.partial {
            return;
        }
        for (index, kind) in context.sweep.places.iter().enumerate() {
            if *kind == PlaceKind::Output {
                let size = self.dtypes[index].size();
                let staging = self.memory[index].as_ref();
                for &(offset, vector, len) in &self.map.segments {
                    let at = vector * LANES * size;
                    bytes[offset * size..(offset + len) * size]
                        .copy_from_slice(&staging[at..at + len * size]);
                }
            }
        }
    }

    /// Runs all phases over the tile.
    fn tile(&mut self, context: &Context<'_>, firsts: &[usize]) {
        for (index, reduction) in context.sweep.reductions.iter().enumerate() {
            let statistic = reduction.statistic;
            let groups = match reduction.class {
                Some(class) => self.map.group_of[class].as_ptr(),
                None => self.zeros.as_ptr(),
            };
            let mut base = self.accumulators[index].base(statistic);
            if let (Some(class), false) = (reduction.class, reduction.local) {
                // The map counts groups from the tile's first, the accumulators from the piece's.
                let skipped = self.map.groups[class].0 - firsts[index];
                let lane = if neutral(statistic).is_none() { 8 } else { 4 };
                base = base.wrapping_add(skipped * LANES * lane);
            }
            self.lanewise[index] = Lanewise { base, groups };
        }
        // Results of earlier sweeps for the groups of this tile.
        for (index, kind) in context.sweep.places.iter().enumerate() {
            if let PlaceKind::Groups(id) = kind
                && let (Some(results), Some(class)) =
                    (context.globals.get(id), context.plan.class_of(*id))
            {
                let (first, count) = self.map.groups[class];
                floats(&mut self.memory[index])[..count]
                    .copy_from_slice(&results[first..first + count]);
            }
        }
        let mut exact = self.whole_exact;
        for phase in &context.sweep.phases {
            for groups in &phase.groups {
                exact |= self.groups(context, groups);
            }
            self.elements(context, phase, exact);
        }
    }

    /// The numbers per group before a phase. Returns whether the tile needs true divisions.
    fn groups(&mut self, context: &Context<'_>, groups: &GroupRoutine) -> bool {
        let class = groups.class;
        let count = self.map.groups[class].1;
        if !groups.routine.steps.is_empty() {
            self.run(context, &groups.routine, false, count.div_ceil(LANES), true);
        }
        let per_group = context.plan.geometry.vectors_per_group(class);
        for &(from, to) in &groups.spread {
            self.spread(from, to, class, per_group, |value| value);
        }
        let mut exact = false;
        for &(from, to) in &groups.invert {
            let divisors = &floats(&mut self.memory[usize::from(from)])[..count];
            exact |= !divisors.iter().all(|&divisor| reciprocal_is_exact(divisor));
            self.spread(from, to, class, per_group, |divisor| 1.0 / divisor);
        }
        exact
    }

    /// Repeats what `map` makes of each group's number for each of its vectors.
    fn spread(
        &mut self,
        from: u16,
        to: u16,
        class: usize,
        per_group: Option<usize>,
        map: impl Fn(f32) -> f32,
    ) {
        let count = self.map.groups[class].1;
        let places = [usize::from(from), usize::from(to)];
        // Groups and numbers are places of different kinds, so this always succeeds.
        let Ok([values, numbers]) = self.memory.get_disjoint_mut(places) else {
            return;
        };
        let (values, numbers) = (&floats(values)[..count], floats(numbers));
        match per_group {
            Some(8) => {
                for (numbers, &value) in numbers.as_chunks_mut::<8>().0.iter_mut().zip(values) {
                    *numbers = [map(value); 8];
                }
            }
            Some(2) => {
                for (numbers, &value) in numbers.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *numbers = [map(value); 2];
                }
            }
            Some(vectors) => {
                for (numbers, &value) in numbers.chunks_mut(vectors).zip(values) {
                    numbers.fill(map(value));
                }
            }
            None => {
                for (number, &group) in numbers.iter_mut().zip(&self.map.group_of[class]) {
                    *number = map(values[group as usize]);
                }
            }
        }
    }

    /// One phase over the elements, and the results of the reductions that end with it.
    fn elements(&mut self, context: &Context<'_>, phase: &Phase, exact: bool) {
        if self.magnitudes(context, phase) {
            return;
        }
        for &(index, _) in &phase.finish {
            let reduction = context.sweep.reductions[index];
            let count = reduction.class.map_or(1, |class| self.map.groups[class].1);
            self.accumulators[index].reset(reduction.statistic, count);
            self.lanewise[index].base = self.accumulators[index].base(reduction.statistic);
        }
        self.run(context, &phase.elements, exact, self.map.vectors, false);
        for &(index, place) in &phase.finish {
            let reduction = context.sweep.reductions[index];
            let Some(class) = reduction.class else {
                continue;
            };
            let (first, count) = self.map.groups[class];
            let results = &mut floats(&mut self.memory[usize::from(place)])[..count];
            let accumulators = &self.accumulators[index];
            if reduction.statistic == Statistic::AbsMax {
                context
                    .engine
                    .finish_magnitudes(&accumulators.single, results);
            } else {
                for (group, result) in results.iter_mut().enumerate() {
                    let members = context.plan.geometry.members(class, first + group);
                    *result = accumulators.across(reduction.statistic, group, members);
                }
            }
        }
    }

    /// A phase that is nothing but the largest magnitude of bf16 inputs, straight from their bits. False where the tile
    /// is laid out otherwise.
    fn magnitudes(&mut self, context: &Context<'_>, phase: &Phase) -> bool {
        let (Some(input), &[(index, place)]) = (phase.magnitudes, &phase.finish[..]) else {
            return false;
        };
        let Some(class) = context.sweep.reductions[index].class else {
            return false;
        };
        match context.plan.geometry.vectors_per_group(class) {
            Some(vectors) if vectors % 2 == 0 && !self.map.partial => {
                let results =
                    &mut floats(&mut self.memory[usize::from(place)])[..self.map.groups[class].1];
                let elements = self.places[usize::from(input)].base.cast_const().cast();
                // SAFETY: the input is bf16 and read in place; all groups of the tile are whole, of `vectors` vectors.
                unsafe {
                    context
                        .engine
                        .group_magnitudes(elements, vectors / 2, results)
                };
                true
            }
            _ => false,
        }
    }

    /// Runs a routine over `vectors` vectors of elements, or of groups.
    fn run(
        &mut self,
        context: &Context<'_>,
        routine: &Routine,
        exact: bool,
        vectors: usize,
        of_groups: bool,
    ) {
        let steps = match &routine.exact {
            Some(steps) if exact => steps,
            _ => &routine.steps,
        };
        let tile = Tile {
            places: &self.places,
            reductions: &self.lanewise,
            valid: if self.map.partial && !of_groups {
                self.map.valid.as_ptr()
            } else {
                std::ptr::null()
            },
            columns: self.map.columns.as_ptr(),
            vectors,
            stream: self.stream,
            dtypes: &self.dtypes,
        };
        // SAFETY: each place was sized by its kind for the longest tile in whole blocks, and points at the tensors
        // themselves only where the tile fills whole blocks; maps cover whole blocks; accumulators exist for every group of
        // the map. The planner names places by kind, so each step finds the layout that it expects.
        unsafe { context.engine.run(steps, &tile) }
    }
}

/// A buffer as f32. Buffers of numbers have a length that four divides.
fn floats(buffer: &mut Buffer) -> &mut [f32] {
    let bytes = buffer.as_mut();
    // SAFETY: the start is aligned to 64 bytes, every bit pattern is an f32, and the length is rounded down.
    unsafe {
        std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<f32>())
    }
}

fn fill(buffer: &mut Buffer, value: f32) {
    floats(buffer).fill(value);
}

/// Whether `bf16(x * (1 / s))` has the bits of `bf16(x / s)` for every bf16 number `x`, where `s` is a bf16 number.
///
/// It has for every `s` but subnormal ones and those above 2^126. Let `X`, `S` be the 8-bit significands of `x` and `s`.
///
/// - For zero, infinite or NaN `s` the reciprocal is infinite, zero or NaN, and product and quotient are the same.
/// - Otherwise the reciprocal is a normal f32 with relative error at most 2^-24, and so is the product unless it is
///   subnormal; together they are within 2^-23 of the quotient. The two f32 can round to different bf16 only if a midpoint
///   `m` of two neighbouring bf16 lies between them. A midpoint has an odd 9-bit significand `M`, so the quotient, if it is
///   not `m` itself, differs from it by `|X 2^k - M S| / S` units with an integer numerator of at least one: relatively by at
///   least `1 / (M S) > 2^-17`. So none lies between. The quotient cannot be `m`, as `X 2^k = M S` would need
///   `X >= M > 255`.
/// - Where the quotient is subnormal in bf16, midpoints have smaller `M`, odd in units of 2^-134. If the quotient is not a
///   midpoint it is at least 2^-134 / 255 away from one, while the product is off by at most one unit of 2^-149. If it is
///   one, the error of the product before its rounding to 2^-149 is below `m 2^-24 < 2^-150`, half a unit, so the product is
///   `m` exactly and both are rounded to even alike.
fn reciprocal_is_exact(s: f32) -> bool {
    const LEAST: u32 = f32::MIN_POSITIVE.to_bits();
    const MOST: u32 = 0x7e80_0000;
    let magnitude = s.to_bits() & 0x7fff_ffff;
    magnitude == 0 || magnitude >= 0x7f80_0000 || (LEAST..=MOST).contains(&magnitude)
}
