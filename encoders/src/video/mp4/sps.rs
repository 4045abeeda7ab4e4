//! Sequence parameter sets of H.264 (ITU-T H.264, 7.3.2.1 and E.1.1): what a decoder would take memory for, and what colours mean.

/// What a sequence of frames is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    /// Pixels of the coded frames, before they are cropped.
    pub width: usize,
    pub height: usize,
    /// Why the decoder cannot decode it.
    pub refused: Option<&'static str>,
    pub colours: Colours,
}

/// How luma and chroma become red, green and blue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Colours {
    /// Of ITU-R BT.709 instead of BT.601, which is what is meant where a file says nothing.
    pub bt709: bool,
    /// From 0 to 255 instead of 16 to 235.
    pub full: bool,
}

/// Bits of a unit, without the bytes that keep it from looking like the start of another one.
struct Bits {
    bytes: Vec<u8>,
    at: usize,
}

impl Bits {
    fn new(unit: &[u8]) -> Self {
        let (mut bytes, mut zeros) = (Vec::with_capacity(unit.len()), 0);
        for &byte in unit {
            if byte == 3 && zeros >= 2 {
                zeros = 0;
                continue;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            bytes.push(byte);
        }
        Self { bytes, at: 0 }
    }

    fn bit(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(bit == 1)
    }

    fn number(&mut self, bits: u32) -> Option<u32> {
        (0..bits).try_fold(0u32, |value, _| Some(value << 1 | u32::from(self.bit()?)))
    }

    /// A number of variable length (9.1).
    fn unsigned(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
        }
        if zeros > 31 {
            return None;
        }
        Some(((1u64 << zeros) - 1) as u32 + self.number(zeros)?)
    }

    fn signed(&mut self) -> Option<i32> {
        let k = i64::from(self.unsigned()?);
        i32::try_from(if k % 2 == 1 { (k + 1) / 2 } else { -k / 2 }).ok()
    }
}

impl Sequence {
    /// Reads a unit of type 7.
    pub fn read(unit: &[u8]) -> Option<Self> {
        let mut bits = Bits::new(unit.get(1..)?);
        let profile = bits.number(8)?;
        // Constraints, level.
        bits.number(16)?;
        bits.unsigned()?;
        let mut refused = None;
        if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
            let chroma = bits.unsigned()?;
            if chroma != 1 {
                refused = Some("H.264 with another chroma format than 4:2:0");
            }
            if chroma == 3 {
                bits.bit()?;
            }
            if bits.unsigned()? != 0 || bits.unsigned()? != 0 {
                refused = Some("H.264 with more than 8 bits a value");
            }
            bits.bit()?;
            if bits.bit()? {
                for i in 0..if chroma == 3 { 12 } else { 8 } {
                    if bits.bit()? {
                        skip_list(&mut bits, if i < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        bits.unsigned()?;
        match bits.unsigned()? {
            0 => {
                bits.unsigned()?;
            }
            1 => {
                bits.bit()?;
                bits.signed()?;
                bits.signed()?;
                for _ in 0..bits.unsigned()?.min(256) {
                    bits.signed()?;
                }
            }
            _ => {}
        }
        bits.unsigned()?;
        bits.bit()?;
        // Sides in blocks of 16.
        let width = (bits.unsigned()? as usize).checked_add(1)?.checked_mul(16)?;
        let rows = (bits.unsigned()? as usize).checked_add(1)?.checked_mul(16)?;
        let frames = bits.bit()?;
        if !frames {
            bits.bit()?;
            refused = Some("interlaced H.264");
        }
        let height = if frames { rows } else { rows.checked_mul(2)? };
        bits.bit()?;
        if bits.bit()? {
            for _ in 0..4 {
                bits.unsigned()?;
            }
        }
        // What follows may be missing, and then nothing is said.
        let colours = colours(&mut bits).unwrap_or_default();
        Some(Self { width, height, refused, colours })
    }
}

fn skip_list(bits: &mut Bits, length: usize) -> Option<()> {
    let (mut last, mut next) = (8, 8);
    for _ in 0..length {
        if next != 0 {
            next = bits.signed()?.wrapping_add(last).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Some(())
}

fn colours(bits: &mut Bits) -> Option<Colours> {
    let mut colours = Colours::default();
    if !bits.bit()? {
        return Some(colours);
    }
    // Shape of pixels, overscan.
    if bits.bit()? && bits.number(8)? == 255 {
        bits.number(32)?;
    }
    if bits.bit()? {
        bits.bit()?;
    }
    if bits.bit()? {
        bits.number(3)?;
        colours.full = bits.bit()?;
        if bits.bit()? {
            bits.number(16)?;
            colours.bt709 = bits.number(8)? == 1;
        }
    }
    Some(colours)
}
