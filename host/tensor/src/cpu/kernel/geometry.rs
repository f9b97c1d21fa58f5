//! How a tensor is cut into tiles, tiles into segments, and which group each vector of a tile belongs to.
//!
//! All of it depends on the sizes alone. Groups that fit are whole within one tile ("local"); longer ones, and spans over
//! columns or the whole tensor, are reduced over several tiles before the next sweep over the tensor.

use super::lanes::LANES;

/// Elements that a tile should have: its working set stays in the first-level cache.
const TILE: usize = 4096;
/// Longest group that is reduced within one tile: its elements stay in the second-level cache.
const LONGEST_LOCAL: usize = 65536;
/// Elements that one piece of parallel work should have.
const PIECE: usize = 1 << 18;
/// Tiles begin at multiples of this wherever groups allow, so that whole blocks of vectors are read in place.
const ALIGNMENT: usize = LANES * super::machine::BLOCK;

/// Groups of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    pub length: usize,
    pub per_row: usize,
    /// Whether tiles never cut a group.
    pub local: bool,
}

/// How tiles cover the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cover {
    /// So many elements each, whatever the rows.
    Flat(usize),
    /// So many whole rows each.
    Rows(usize),
    /// Pieces of a row, so many elements each.
    Split(usize),
}

/// The cut of one tensor shape for one program.
#[derive(Debug)]
pub(super) struct Geometry {
    rows: usize,
    columns: usize,
    cover: Cover,
    /// Elements between two borders that a vector must not cross.
    unit: usize,
    /// Whether segments end within a vector and so are laid out with gaps.
    ragged: bool,
    /// Whether every tile of one length has the same map.
    periodic: bool,
    pub classes: Vec<Class>,
    /// Tiles per piece of parallel work.
    per_piece: usize,
}

/// Where the elements of one tile belong.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// First element and element count.
    pub start: usize,
    pub len: usize,
    pub vectors: usize,
    /// Runs of elements that are neighbours in the tile too: (offset in the tensor's tile, offset in vectors, elements).
    pub segments: Vec<(usize, usize, usize)>,
    /// Lanes in use of each vector, filled up to a whole block.
    pub valid: Vec<u8>,
    /// Whether `valid` is less than sixteen anywhere, or the block is not full.
    pub partial: bool,
    /// Column of the first lane of each vector.
    pub columns: Vec<u32>,
    /// By class: first group and group count.
    pub groups: Vec<(usize, usize)>,
    /// By class: the group of each vector, counted from the first.
    pub group_of: Vec<Vec<u32>>,
}

impl Geometry {
    /// The cut for groups of `lengths` (each shorter than or equal to a row), and for programs that look at columns.
    pub(super) fn new(rows: usize, columns: usize, lengths: &[usize], by_column: bool) -> Self {
        let mut classes: Vec<Class> = lengths
            .iter()
            .map(|&length| Class {
                length,
                per_row: columns.div_ceil(length),
                local: length <= LONGEST_LOCAL,
            })
            .collect();
        // Tiles must hold whole groups of every local class; where that makes them too long, the longest class gives way.
        let alignment = loop {
            let alignment = classes
                .iter()
                .filter(|class| class.local && class.length < columns)
                .try_fold(1, |common, class| {
                    least_common_multiple(common, class.length)
                });
            if let Some(alignment) = alignment.filter(|&a| a <= LONGEST_LOCAL) {
                break alignment;
            }
            if let Some(longest) = classes
                .iter_mut()
                .filter(|class| class.local)
                .max_by_key(|class| class.length)
            {
                longest.local = false;
            }
        };
        let rowed = by_column || !classes.is_empty();
        let unit = classes
            .iter()
            .filter(|c| c.length < columns)
            .fold(0, |unit, c| common_divisor(unit, c.length));
        let unit = if unit == 0 { columns } else { unit };
        let ragged = rowed && (!unit.is_multiple_of(LANES) || !columns.is_multiple_of(LANES));
        // Without gaps, and with groups that divide the rows, row ends need no attention.
        let even = !ragged
            && classes
                .iter()
                .all(|class| columns.is_multiple_of(class.length));
        let local_row = classes
            .iter()
            .any(|class| class.local && class.length == columns);
        let whole = if local_row {
            least_common_multiple(alignment, columns)
        } else {
            Some(alignment)
        };
        let cover = if !rowed {
            Cover::Flat(TILE)
        } else if let (true, Some(whole)) = (even, whole.filter(|&whole| whole <= LONGEST_LOCAL)) {
            let aligned = least_common_multiple(whole, ALIGNMENT)
                .filter(|&a| a <= LONGEST_LOCAL)
                .unwrap_or(whole);
            Cover::Flat(nearest_multiple(aligned))
        } else if columns <= TILE || local_row {
            Cover::Rows((TILE / columns.max(1)).max(1))
        } else {
            Cover::Split(nearest_multiple(alignment))
        };
        let periodic = !rowed || (even && !by_column && classes.iter().all(|class| class.local));
        let mut geometry = Geometry {
            rows,
            columns,
            cover,
            unit,
            ragged,
            periodic,
            classes,
            per_piece: 1,
        };
        geometry.per_piece = (PIECE / geometry.longest_tile().max(1)).max(1);
        if by_column {
            // Each piece has a result per column, so there are only a few.
            geometry.per_piece = geometry.per_piece.max(geometry.tiles().div_ceil(32));
        }
        geometry
    }

    fn tiles(&self) -> usize {
        let all = self.rows * self.columns;
        match self.cover {
            Cover::Flat(len) => all.div_ceil(len),
            Cover::Rows(rows) => self.rows.div_ceil(rows),
            Cover::Split(width) => self.rows * self.columns.div_ceil(width),
        }
    }

    /// Elements of the longest tile.
    fn longest_tile(&self) -> usize {
        match self.cover {
            Cover::Flat(len) => len.min(self.rows * self.columns),
            Cover::Rows(rows) => rows.min(self.rows) * self.columns,
            Cover::Split(width) => width.min(self.columns),
        }
    }

    /// Vectors of the longest tile, whole blocks.
    pub(super) fn most_vectors(&self) -> usize {
        let elements = self.longest_tile();
        let vectors = if self.ragged {
            let per_row = self.columns.div_ceil(self.unit) * self.unit.div_ceil(LANES);
            match self.cover {
                Cover::Rows(rows) => rows * per_row,
                _ => (elements.div_ceil(self.unit) + 1) * self.unit.div_ceil(LANES),
            }
        } else {
            elements.div_ceil(LANES)
        };
        vectors.next_multiple_of(super::machine::BLOCK)
    }

    /// Most groups of a class that one tile touches.
    pub(super) fn most_groups(&self, class: usize) -> usize {
        let Class {
            length, per_row, ..
        } = self.classes[class];
        match self.cover {
            Cover::Rows(rows) => rows * per_row,
            // A cut row adds one short group, and a tile may begin and end within a group.
            _ => self.longest_tile() / length + 2 + self.longest_tile() / self.columns.max(1),
        }
    }

    /// Number of pieces of parallel work.
    pub(super) fn pieces(&self) -> usize {
        self.tiles().div_ceil(self.per_piece)
    }

    /// First tile and tile count of a piece.
    pub(super) fn piece(&self, piece: usize) -> std::ops::Range<usize> {
        let start = piece * self.per_piece;
        start..(start + self.per_piece).min(self.tiles())
    }

    /// First element and element count of a tile.
    pub(super) fn tile(&self, tile: usize) -> (usize, usize) {
        let all = self.rows * self.columns;
        match self.cover {
            Cover::Flat(len) => (tile * len, len.min(all - tile * len)),
            Cover::Rows(rows) => {
                let first = tile * rows;
                (
                    first * self.columns,
                    rows.min(self.rows - first) * self.columns,
                )
            }
            Cover::Split(width) => {
                let per_row = self.columns.div_ceil(width);
                let (row, column) = (tile / per_row, tile % per_row * width);
                (
                    row * self.columns + column,
                    width.min(self.columns - column),
                )
            }
        }
    }

    /// The elements of a piece: tiles follow each other without gaps.
    pub(super) fn elements(&self, piece: usize) -> std::ops::Range<usize> {
        let tiles = self.piece(piece);
        let (start, _) = self.tile(tiles.start);
        let (last, len) = self.tile(tiles.end - 1);
        start..last + len
    }

    /// The group of a class that an element is in.
    pub(super) fn group(&self, class: usize, element: usize) -> usize {
        let Class {
            length, per_row, ..
        } = self.classes[class];
        element / self.columns * per_row + element % self.columns / length
    }

    /// Elements of a group.
    pub(super) fn members(&self, class: usize, group: usize) -> usize {
        let Class {
            length, per_row, ..
        } = self.classes[class];
        length.min(self.columns - group % per_row * length)
    }

    /// Groups of a class in the whole tensor.
    pub(super) fn all_groups(&self, class: usize) -> usize {
        self.rows * self.classes[class].per_row
    }

    /// Fills `map` for a tile; only the position where the last tile had the same map.
    pub(super) fn map(&self, tile: usize, map: &mut Map) {
        let (start, len) = self.tile(tile);
        let same = self.periodic && map.len == len;
        map.start = start;
        if same {
            for (class, groups) in map.groups.iter_mut().enumerate() {
                groups.0 = self.group(class, start);
            }
            return;
        }
        map.len = len;
        map.segments.clear();
        map.valid.clear();
        map.columns.clear();
        map.groups = (0..self.classes.len())
            .map(|class| (self.group(class, start), 0))
            .collect();
        map.group_of.resize(self.classes.len(), Vec::new());
        map.group_of.iter_mut().for_each(Vec::clear);
        if self.ragged {
            let mut offset = 0;
            while offset < len {
                let column = (start + offset) % self.columns;
                let to_border = (self.unit - column % self.unit).min(self.columns - column);
                self.segment(map, offset, to_border.min(len - offset));
                offset += to_border.min(len - offset);
            }
        } else {
            self.segment(map, 0, len);
        }
        map.vectors = map.valid.len();
        let blocks = map.vectors.next_multiple_of(super::machine::BLOCK);
        map.partial =
            blocks != map.vectors || map.valid.iter().any(|&lanes| usize::from(lanes) < LANES);
        map.valid.resize(blocks, 0);
        map.columns.resize(blocks, 0);
        for (class, group_of) in map.group_of.iter_mut().enumerate() {
            let last = group_of.last().copied().unwrap_or(0);
            map.groups[class].1 = last as usize + 1;
            group_of.resize(blocks, last);
        }
    }

    /// Adds the vectors of one segment to `map`.
    fn segment(&self, map: &mut Map, offset: usize, len: usize) {
        map.segments.push((offset, map.valid.len(), len));
        for within in (0..len).step_by(LANES) {
            let element = map.start + offset + within;
            map.valid.push((len - within).min(LANES) as u8);
            map.columns.push((element % self.columns) as u32);
            for class in 0..self.classes.len() {
                let group = self.group(class, element) - map.groups[class].0;
                map.group_of[class].push(group as u32);
            }
        }
    }

    /// How many vectors each group of a class takes, where that is the same for all and vectors follow each other.
    pub(super) fn vectors_per_group(&self, class: usize) -> Option<usize> {
        let length = self.classes[class].length;
        (self.periodic && length.is_multiple_of(LANES)).then_some(length / LANES)
    }
}

/// The multiple of `step` that is closest to [`TILE`] from below, or one step.
fn nearest_multiple(step: usize) -> usize {
    (TILE / step).max(1) * step
}

fn common_divisor(a: usize, b: usize) -> usize {
    if a == 0 { b } else { common_divisor(b % a, a) }
}

fn least_common_multiple(a: usize, b: usize) -> Option<usize> {
    (a / common_divisor(a, b)).checked_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element is in exactly one lane of one tile, in the group that its index says, and local groups are whole.
    #[test]
    fn maps_cover_the_tensor() {
        let shapes = [
            (1, 1),
            (3, 40),
            (7, 128),
            (5, 4096),
            (2, 10_000),
            (3, 11_008),
            (1000, 3),
            (2, 70_000),
        ];
        let classes: [&[usize]; 9] = [
            &[],
            &[1],
            &[7],
            &[32],
            &[128],
            &[32, 128],
            &[7, 8],
            &[24, 36],
            &[66_000],
        ];
        for ((rows, columns), lengths, by_column) in shapes.iter().flat_map(|&s| {
            classes
                .iter()
                .flat_map(move |&c| [(s, c, false), (s, c, true)])
        }) {
            for with_row in [false, true] {
                let mut lengths: Vec<usize> =
                    lengths.iter().copied().filter(|&l| l < columns).collect();
                if with_row {
                    lengths.push(columns);
                }
                check(
                    &Geometry::new(rows, columns, &lengths, by_column),
                    by_column,
                );
            }
        }
    }

    fn check(geometry: &Geometry, by_column: bool) {
        let columns = geometry.columns;
        let mut next = 0;
        let mut map = Map::default();
        for piece in 0..geometry.pieces() {
            assert_eq!(geometry.elements(piece).start, next);
            for tile in geometry.piece(piece) {
                geometry.map(tile, &mut map);
                assert_eq!(map.start, next);
                assert!(map.vectors <= geometry.most_vectors());
                assert_eq!(map.segments.iter().map(|s| s.2).sum::<usize>(), map.len);
                for (class, &(first, count)) in map.groups.iter().enumerate() {
                    assert!(count <= geometry.most_groups(class));
                    if geometry.classes[class].local {
                        let begins = |element: usize| {
                            (element % columns).is_multiple_of(geometry.classes[class].length)
                        };
                        assert!(
                            begins(map.start)
                                && (begins(map.start + map.len)
                                    || (map.start + map.len) % columns == 0)
                        );
                    }
                    assert_eq!(first, geometry.group(class, map.start));
                }
                for &(offset, vector, len) in &map.segments {
                    for within in 0..len {
                        let (element, at) = (map.start + offset + within, vector + within / LANES);
                        assert!(within % LANES < usize::from(map.valid[at]));
                        if by_column {
                            assert_eq!(
                                map.columns[at] as usize + within % LANES,
                                element % columns
                            );
                        }
                        for class in 0..geometry.classes.len() {
                            let group = map.groups[class].0 + map.group_of[class][at] as usize;
                            assert_eq!(group, geometry.group(class, element));
                        }
                    }
                }
                next += map.len;
            }
            assert_eq!(geometry.elements(piece).end, next);
        }
        assert_eq!(next, geometry.rows * columns);
    }
}
