//! Element types and their spelling in safetensors files.

use std::fmt;

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// 1-4-3, bias 7, largest 448, no infinity.
    F8E4M3,
    /// 1-5-2, bias 15, largest 57344, has infinity.
    F8E5M2,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every dtype with its safetensors name and size in bytes.
    const TABLE: [(DType, &'static str, usize); 15] = [
        (DType::F64, "F64", 8),
        (DType::F32, "F32", 4),
        (DType::F16, "F16", 2),
        (DType::BF16, "BF16", 2),
        (DType::F8E4M3, "F8_E4M3", 1),
        (DType::F8E5M2, "F8_E5M2", 1),
        (DType::I64, "I64", 8),
        (DType::I32, "I32", 4),
        (DType::I16, "I16", 2),
        (DType::I8, "I8", 1),
        (DType::U64, "U64", 8),
        (DType::U32, "U32", 4),
        (DType::U16, "U16", 2),
        (DType::U8, "U8", 1),
        (DType::Bool, "BOOL", 1),
    ];

    /// Name in a safetensors header.
    pub fn name(self) -> &'static str {
        Self::TABLE[self as usize].1
    }

    /// The dtype that a safetensors header calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::TABLE
            .iter()
            .find(|row| row.1 == name)
            .map(|row| row.0)
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        Self::TABLE[self as usize].2
    }

    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        (self as usize) <= (DType::F8E5M2 as usize)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order() {
        for (index, (dtype, name, _)) in DType::TABLE.iter().enumerate() {
            assert_eq!(*dtype as usize, index);
            assert_eq!(DType::from_name(name), Some(*dtype));
        }
    }
}
