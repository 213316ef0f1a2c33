//! What an engine computes on besides this machine's CPU: refused by name where it is not built in, and the same answers
//! where it is.

use engine::{Device, Engine, EngineConfig, LoadOptions, ModelSource, load};

use crate::harness::{MODEL, config};

fn start(device: Device) -> Result<Engine, String> {
    let model = load(&ModelSource::Bundled, &LoadOptions::default()).expect("it is inside");
    let mut text = String::new();
    Engine::start(MODEL.into(), model, EngineConfig { device, ..config() }).map_err(|error| {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            text.push_str(&format!("{error}: "));
            cause = error.source();
        }
        text
    })
}

#[test]
fn a_device_that_is_not_built_in_is_refused_with_the_feature_that_it_needs() {
    for device in [Device::CandleCpu, Device::Metal(0), Device::Cuda(1)] {
        let Some(feature) = device.missing_feature() else { continue };
        let refused = start(device).err().unwrap_or_else(|| panic!("{device} was started"));
        let wanted = format!("--features {feature}");
        assert!(refused.contains(&wanted) && refused.contains(&device.to_string()), "{refused}");
    }
}

/// Several sequences at once, pages reused, over candle's CPU device: the greedy answers of our own kernels.
#[cfg(feature = "candle")]
#[test]
fn candle_answers_as_the_cpu_does() {
    use crate::harness::{job, prompt, submit};
    use wire::job::Sampling;

    let (cpu, candle) = (start(Device::Cpu).unwrap(), start(Device::CandleCpu).unwrap());
    let answers = |engine: &Engine| -> Vec<_> {
        let jobs = (0..5).map(|number| job(&prompt(number, 5 + 11 * number), 12, Sampling::default()));
        let waiting: Vec<_> = jobs.map(|job| submit(engine, job).unwrap()).collect();
        waiting.into_iter().map(|answer| answer.rest().unwrap().tokens).collect()
    };
    for _ in 0..2 {
        assert_eq!(answers(&candle), answers(&cpu));
    }
}
