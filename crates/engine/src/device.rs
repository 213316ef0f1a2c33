//! What an engine computes on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A processor, and whose loops run on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The CPU, by this project's own kernels.
    #[default]
    Cpu,
    /// The CPU, by candle: a reference for what runs on the others.
    CandleCpu,
    /// A Metal device, by candle; which.
    Metal(u16),
    /// A CUDA device, by candle; which.
    Cuda(u16),
}

impl Device {
    /// The feature that this program must be built with, where it was built without.
    pub fn missing_feature(self) -> Option<&'static str> {
        let (feature, built) = match self {
            Self::Cpu => return None,
            Self::CandleCpu => ("candle", cfg!(feature = "candle")),
            Self::Metal(_) => ("metal", cfg!(feature = "metal")),
            Self::Cuda(_) => ("candle-cuda", cfg!(feature = "candle-cuda")),
        };
        (!built).then_some(feature)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::CandleCpu => f.write_str("candle-cpu"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, ordinal) = text.split_once(':').unwrap_or((text, "0"));
        match (kind, ordinal.parse()) {
            ("cpu", _) if kind == text => Ok(Self::Cpu),
            ("candle-cpu", _) if kind == text => Ok(Self::CandleCpu),
            ("metal", Ok(ordinal)) => Ok(Self::Metal(ordinal)),
            ("cuda", Ok(ordinal)) => Ok(Self::Cuda(ordinal)),
            _ => {
                let text: String = text.chars().take(40).collect();
                Err(format!("{text:?} is none of cpu, candle-cpu, metal, metal:N, cuda and cuda:N"))
            }
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for device in
            [Device::Cpu, Device::CandleCpu, Device::Metal(0), Device::Metal(3), Device::Cuda(65535)]
        {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("metal".parse(), Ok(Device::Metal(0)));
        for wrong in ["", "gpu", "cpu:1", "metal:", "cuda:-1", "cuda:65536", "Metal"] {
            assert!(wrong.parse::<Device>().unwrap_err().contains("none of cpu"), "{wrong}");
        }
    }
}
