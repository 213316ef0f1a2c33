//! Activations that are on a device, in this process's memory, or in both.

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor};

/// `[rows, columns]` in f32. At least one of the two is there once anything was stored.
#[derive(Debug, Default)]
pub struct Rows {
    tensor: OnceLock<Tensor>,
    host: OnceLock<Vec<f32>>,
    shape: (usize, usize),
}

impl Rows {
    /// Takes what was computed.
    pub(super) fn set(&mut self, computed: Result<Tensor>) -> Result<()> {
        let tensor = computed?;
        self.shape = tensor.dims2()?;
        self.host = OnceLock::new();
        self.tensor = OnceLock::from(tensor);
        Ok(())
    }

    /// The values as a tensor on `device`.
    pub(super) fn on(&self, device: &Device) -> Result<Tensor> {
        if let Some(tensor) = self.tensor.get() {
            return Ok(tensor.clone());
        }
        let values = self.host.get().map_or(&[][..], Vec::as_slice);
        let tensor = Tensor::from_slice(values, self.shape, device)?;
        Ok(self.tensor.get_or_init(|| tensor).clone())
    }

    /// The values in this process's memory.
    pub(super) fn host(&self) -> Result<&[f32]> {
        if let (None, Some(tensor)) = (self.host.get(), self.tensor.get()) {
            let values = tensor.flatten_all()?.to_vec1()?;
            let _ = self.host.set(values);
        }
        Ok(self.host.get().map_or(&[][..], Vec::as_slice))
    }

    /// The same to be changed: the device's copy is out of date from here on.
    pub(super) fn host_mut(&mut self) -> Result<&mut [f32]> {
        self.host()?;
        self.tensor = OnceLock::new();
        Ok(self.host.get_mut().map_or(&mut [][..], Vec::as_mut_slice))
    }
}
