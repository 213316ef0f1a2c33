//! How weights are stored: floats, GGML's blocks, MXFP4, MLX's groups.

/// How the elements of a weight are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// GGML: 32 codes of 4 bits, a scale.
    Q4_0,
    /// GGML: 32 codes of 4 bits, a scale, a minimum.
    Q4_1,
    /// GGML: 32 codes of 5 bits, a scale.
    Q5_0,
    /// GGML: 32 codes of 5 bits, a scale, a minimum.
    Q5_1,
    /// GGML: 32 codes of 8 bits, a scale.
    Q8_0,
    /// GGML `Q2_K`: 256 codes of 2 bits, scales and minima of 16.
    Q2K,
    /// GGML `Q3_K`: 256 codes of 3 bits, scales of 16.
    Q3K,
    /// GGML `Q4_K`: 256 codes of 4 bits, scales and minima of 32.
    Q4K,
    /// GGML `Q5_K`: 256 codes of 5 bits, scales and minima of 32.
    Q5K,
    /// GGML `Q6_K`: 256 codes of 6 bits, scales of 16.
    Q6K,
    /// GGML's MXFP4: 32 codes of e2m1 beside their e8m0 scale.
    Mxfp4,
    /// MXFP4 whose scales are a tensor of their own (gpt-oss and MLX in safetensors): 32 codes in 16 bytes, the even
    /// one of each two in the low half.
    Mxfp4Split,
    /// MLX's affine codes, whose scales and biases are tensors of their own.
    Mlx {
        /// Of a code: 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// Codes that share a scale and a bias: 32, 64 or 128.
        group: u8,
    },
}

impl DType {
    /// Elements of a block, and the bytes that they take (without those in tensors of their own).
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Mxfp4 => (32, 17),
            Self::Mxfp4Split => (32, 16),
            Self::Mlx { bits, group } => (group as usize, group as usize * bits as usize / 8),
        }
    }

    /// Bytes of a row of `columns`; nothing where they are no whole blocks, or the size overflows.
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        if !columns.is_multiple_of(elements) {
            return None;
        }
        (columns / elements).checked_mul(bytes)
    }

    /// Whether elements are plain floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// As its format spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Mxfp4 | Self::Mxfp4Split => "MXFP4",
            Self::Mlx { bits: 2, .. } => "MLX 2-bit",
            Self::Mlx { bits: 3, .. } => "MLX 3-bit",
            Self::Mlx { bits: 4, .. } => "MLX 4-bit",
            Self::Mlx { bits: 5, .. } => "MLX 5-bit",
            Self::Mlx { bits: 6, .. } => "MLX 6-bit",
            Self::Mlx { .. } => "MLX 8-bit",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
